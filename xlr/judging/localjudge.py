"""A judge in the Ray workers: the log-probabilities of both verdicts after each question, scored like responses."""

from collections.abc import Sequence

from xlr.config import JudgeConfig
from xlr.data.encoding import ChatEncoder, load_tokenizer
from xlr.judging import question
from xlr.records import Example, Message, Verdict
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.work import ExampleLogps, resumable_logps


def require_usable(judge: JudgeConfig) -> None:
    """Check early that the judge's tokenizer and chat template can be used.

    Raises:
        UserError: they cannot.
    """
    _encoder(judge)


def _encoder(judge: JudgeConfig) -> ChatEncoder:
    assert judge.model is not None
    return ChatEncoder(load_tokenizer(judge.model), judge.model)


def ask(
    context: Context, target: Artifact, label: str, questions: Sequence[list[Message]], langs: Sequence[str]
) -> tuple[list[Verdict], int]:
    """The verdict on every question by `judge.model`, a folder or hub name; see `judgements`.

    A question longer than the judge's context is not asked; its verdict is undecided.
    """
    from xlr.model.weights import load_config  # imports torch

    encoder = _encoder(context.config.judge)
    answers = tuple(encoder.response(verdict) for verdict in (question.FIRST, question.SECOND))
    with context.clock.measure("tokenise"):
        examples = [Example(encoder.prompt_of(messages), answers) for messages in questions]
    limit = load_config(encoder.name).get_text_config().max_position_embeddings - max(map(len, answers))
    short = [index for index, example in enumerate(examples) if len(example.prompt) <= limit]

    def to_rows(item: int, logps: ExampleLogps) -> list[Verdict]:
        (first,), (second,) = logps
        return [_verdict(first, second, len(examples[short[item]].prompt))]

    given = resumable_logps(
        context,
        target,
        "parts",
        [encoder.name],
        [examples[index] for index in short],
        [[(langs[index], str(index))] for index in short],
        Verdict,
        to_rows,
        label,
        "verdicts",
    )
    too_long = Verdict(question.UNDECIDED, f"longer than the {limit} tokens that the judge reads", 0, 0)
    of_question = dict(zip(short, given, strict=True))
    return [of_question.get(index, too_long) for index in range(len(questions))], len(given)


def _verdict(first: float, second: float, prompt_tokens: int) -> Verdict:
    preference = question.weighted({question.FIRST: first, question.SECOND: second})
    return Verdict(preference, question.SECOND if preference > 0.5 else question.FIRST, prompt_tokens, 0)

"""A judge in the Ray workers: the log-probabilities of both verdicts after each question, as responses are scored."""

from collections import Counter
from collections.abc import Sequence

from xlr.config import JudgeConfig
from xlr.data.encoding import ChatEncoder, batch_shape, load_tokenizer
from xlr.evaluation import question as verdicts
from xlr.maths.batching import token_budget_batches
from xlr.records import Example, Message, Verdict
from xlr.run.artifact import Artifact
from xlr.run.context import Context, Work, resumable


def require_usable(judge: JudgeConfig) -> None:
    """Find what is lacking before anything else is computed.

    Raises:
        UserError: the tokenizer, or its chat template.
    """
    _encoder(judge)


def _encoder(judge: JudgeConfig) -> ChatEncoder:
    assert judge.model is not None
    return ChatEncoder(load_tokenizer(judge.model), judge.model)


def ask(
    context: Context, target: Artifact, label: str, questions: Sequence[list[Message]], langs: Sequence[str]
) -> tuple[list[Verdict], int]:
    """The verdict on every question, by the model folder or hub name `judge.model`; see `judgements`.

    A question longer than the judge reads is not asked, and its verdict undecided.
    """
    from xlr.model.weights import load_config  # imports torch

    judge = context.config.judge
    encoder = _encoder(judge)
    answers = tuple(encoder.response(verdict) for verdict in (verdicts.FIRST, verdicts.SECOND))
    with context.clock.measure("tokenise"):
        examples = [Example(encoder.prompt_of(question), answers) for question in questions]
    limit = load_config(encoder.name).get_text_config().max_position_embeddings - max(map(len, answers))
    short = [index for index, example in enumerate(examples) if len(example.prompt) <= limit]
    lengths, padded_rows = batch_shape([examples[i] for i in short], context.config.model.attn_implementation)
    plan = token_budget_batches(lengths, context.config.score.batch_tokens, padded_rows)
    batches = [[short[i] for i in batch] for batch in plan]

    def to_rows(number: int, result: list[list[tuple[float]]]) -> list[Verdict]:
        return [
            _verdict(first, second, len(examples[index].prompt))
            for index, ((first,), (second,)) in zip(batches[number], result, strict=True)
        ]

    work = Work(
        "score",
        [((encoder.name,), [examples[i] for i in batch]) for batch in batches],
        [Counter(langs[i] for i in batch) for batch in batches],
        Verdict,
        to_rows,
        lambda number, _: sum(len(examples[i].prompt) for i in batches[number]),
    )
    found = resumable(context, target, "parts", work, label, "verdicts")
    too_long = Verdict(verdicts.UNDECIDED, f"longer than the {limit} tokens that the judge reads", 0, 0)
    placed = dict(zip((i for batch in batches for i in batch), found, strict=True))
    return [placed.get(index, too_long) for index in range(len(questions))], len(found)


def _verdict(first: float, second: float, prompt_tokens: int) -> Verdict:
    preference = verdicts.weighted({verdicts.FIRST: first, verdicts.SECOND: second})
    return Verdict(preference, verdicts.SECOND if preference > 0.5 else verdicts.FIRST, prompt_tokens, 0)

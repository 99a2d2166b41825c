"""A judge in the Ray workers: the log-probabilities of both verdicts after each question, scored like responses."""

import sys
from collections.abc import Mapping, Sequence
from itertools import chain

from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.errors import UserError
from xlr.judging import question
from xlr.records import Example, Message, RowKey, Scored, Verdict
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.settings.config import JudgeConfig
from xlr.work.logps import Scoring, resumable_logps
from xlr.work.shards import by_language


def require_usable(
    judge: JudgeConfig, shortest: Mapping[str, list[Message]], scale: question.Scale = question.PREFERENCE
) -> None:
    """Check early that the judge's model, tokenizer and chat template can be used; see the interface in `judgements`.

    Args:
        scale: what the judge may reply.

    Raises:
        UserError: they cannot, or a question is longer than the judge reads even without answers.
    """
    from xlr.model.checks import require_model  # imports torch

    encoder = encoder_of(str(judge.model))
    require_model(encoder.name, encoder.tokenizer)
    limit = room(encoder, scale)
    for where, messages in shortest.items():
        tokens = encoder.tokens_beyond(messages, limit)
        if tokens is not None:
            raise UserError(
                f"judge.model {encoder.name}: the question about the prompt {where} has {tokens:,} tokens without its "
                f"answers, but the judge reads {limit:,} (max_position_embeddings in its config.json); set another "
                "judge.model or a shorter template, or shorten or remove the prompt"
            )
    for messages in [*shortest.values()][:1]:
        encoder.prompt_of(messages)  # the chat template may refuse the template's roles


def room(encoder: ChatEncoder, scale: question.Scale = question.PREFERENCE) -> int:
    """The most tokens of a question that the judge reads."""
    from xlr.model.checks import positions  # imports torch

    found = positions(encoder.name)
    return sys.maxsize if found is None else found - max(map(len, replies(encoder, scale)))


def replies(encoder: ChatEncoder, scale: question.Scale = question.PREFERENCE) -> tuple[tuple[int, ...], ...]:
    """What the judge may reply, as token ids."""
    return tuple(map(encoder.response, scale.values))


def encoder_of(folder: str) -> ChatEncoder:
    """The tokenizer and chat template of a judge."""
    return ChatEncoder(load_tokenizer(folder), folder)


def ask(
    context: Context,
    target: Artifact,
    label: str,
    questions: Sequence[list[Message]],
    langs: Sequence[str],
    scale: question.Scale = question.PREFERENCE,
) -> tuple[list[Verdict], int]:
    """The verdict on every question by `judge.model`, a folder or hub name; see `judgements`.

    A question longer than the judge's context is not asked; its verdict is undecided.

    Args:
        scale: what the judge may reply.
    """
    encoder = encoder_of(context.located(str(context.config.judge.model)))
    answers, limit = replies(encoder, scale), room(encoder, scale)
    with context.clock.measure("tokenise"):
        examples = [Example(encoder.prompt_of(messages), answers) for messages in questions]
    short = [index for index, example in enumerate(examples) if len(example.prompt) <= limit]

    def key(index: int) -> RowKey:
        return langs[index], str(index)

    def scoring(own: list[int]) -> Scoring[Verdict]:
        def to_rows(item: int, scored: Scored) -> list[Verdict]:
            logps = dict(zip(scale.values, (logp for (logp,) in scored.logps), strict=True))
            likeliest = max(logps, key=logps.__getitem__)
            return [Verdict(question.weighted(logps, scale), likeliest, len(examples[own[item]].prompt), 0)]

        return Scoring([examples[index] for index in own], [[key(index)] for index in own], to_rows)

    # One shard a language, so that a verdict does not depend on the other languages.
    shards = by_language(short, key)
    given = resumable_logps(
        context,
        target,
        "parts",
        [encoder.name],
        context.config.model.dtype,
        Verdict,
        [shard.replanned(scoring) for shard in shards],
        label,
        "verdicts",
    ).rows()
    too_long = Verdict(question.UNDECIDED, f"longer than the {limit} tokens that the judge reads", 0, 0)
    of_question = dict(zip(chain.from_iterable(shard.plan() for shard in shards), given, strict=True))
    return [of_question.get(index, too_long) for index in range(len(questions))], len(given)

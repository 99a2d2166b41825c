"""Log-probabilities of responses, computed by the workers in pieces that resume."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic

from xlr import detection
from xlr.maths.batching import Batch, token_budget_batches
from xlr.packing.layout import batch_shape
from xlr.records import DType, Example, Logps, RowKey, Scored, ScoreTask
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.rows import Row
from xlr.work.pieces import Finished, resumable
from xlr.work.shards import Shard, Work


@dataclass(frozen=True)
class Scoring(Generic[Row]):
    """Examples whose responses are scored, and the rows that these become."""

    examples: Sequence[Example]
    keys: Sequence[Sequence[RowKey]]
    """For each example, the keys of the rows it becomes."""
    to_rows: Callable[[int, Scored], list[Row]]
    """Converts an example's index, and what the workers found about its responses, to these rows."""
    texts: Sequence[Sequence[tuple[str, str]]] | None = None
    """For each example, texts whose languages the workers detect, each after the tag that it should be in."""
    expected: Sequence[str] = ()
    """The languages that detection considers, in addition to the most common ones."""
    places: Sequence[Sequence[int]] | None = None
    """For each example, where its rows stand in the shard; by default they are in the order of the examples."""


def resumable_logps(
    context: Context,
    target: Artifact,
    pieces: str,
    models: Sequence[str],
    dtype: DType,
    row_type: type[Row],
    shards: Sequence[Shard[Scoring[Row]]],
    label: str,
    unit: str,
    rating: bool = False,
) -> Finished[Row]:
    """Compute the log-probabilities of all examples' responses under the models, in batches of `score.batch_tokens`.

    Args:
        rating: whether the models are reward models, which rate the responses instead.

    With `ray.one_model_at_a_time`, the workers compute all examples under the first model, then under the second.

    Raises:
        UserError: see `resumable`.
    """
    budget, attention = context.config.score.batch_tokens, context.config.model.attn_implementation
    cut = [replace(shard, digest=f"{shard.digest} {budget} {attention}") for shard in shards]
    *first, last = [(model,) for model in models] if context.config.ray.one_model_at_a_time else [tuple(models)]
    known: list[Finished[Logps]] = []
    task_of = partial(ScoreTask, examples=(), dtype=dtype, expected=context.config.all_languages, rating=rating)

    def of_one_model(own: tuple[str, ...], scoring: Scoring[Row]) -> Work[Logps]:
        return _work(context, one_row_each(scoring.examples, [keys[:1] for keys in scoring.keys]), task_of(own))

    for number, own in enumerate(first):
        plans = [shard.replanned(partial(of_one_model, own)) for shard in cut]
        name = f"{label}, {Path(own[0]).name}"
        known.append(resumable(context, target, f"{pieces}-{number}", Logps, task_of(own), plans, name, "examples"))

    def with_known(name: str, scoring: Scoring[Row]) -> Work[Row]:
        before = [of_model.rows(name) for of_model in known]

        def to_rows(item: int, scored: Scored) -> list[Row]:
            earlier = (of_model[item].logps for of_model in before)
            logps = [(*values, *own) for *values, own in zip(*earlier, scored.logps, strict=True)]
            return scoring.to_rows(item, Scored(logps, scored.languages))

        return _work(context, replace(scoring, to_rows=to_rows), task_of(last))

    plans_of_last = [shard.replanned(partial(with_known, shard.name)) for shard in cut]
    return resumable(context, target, pieces, row_type, task_of(last), plans_of_last, label, unit)


def _work(context: Context, scoring: Scoring[Any], like: ScoreTask) -> Work[Any]:
    """The batches of these examples, and their tasks, which are like a given one."""
    examples, texts = scoring.examples, scoring.texts
    lengths, padded_rows = batch_shape(examples, context.config.model.attn_implementation)

    def task(batch: Batch) -> ScoreTask:
        asked = tuple(map(_excerpts, map(texts.__getitem__, batch))) if texts is not None else ()
        given = tuple(examples[item] for item in batch)
        return replace(like, examples=given, texts=asked, expected=tuple(scoring.expected))

    places = scoring.places.__getitem__ if scoring.places is not None else None
    return Work(
        scoring.keys.__getitem__,
        token_budget_batches(lengths, context.config.score.batch_tokens, padded_rows),
        task,
        lambda batch, result: [
            row for item, one in zip(batch, result, strict=True) for row in scoring.to_rows(item, one)
        ],
        lambda batch, _: sum(len(response) for item in batch for response in examples[item].responses),
        places,
    )


def _excerpts(texts: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """What detection looks at of texts. Whole texts would take the larger part of a task."""
    return tuple((lang, detection.excerpt(text)) for lang, text in texts)


def one_row_each(examples: Sequence[Example], keys: Sequence[Sequence[RowKey]]) -> Scoring[Logps]:
    """Examples that become one row each: the log-probabilities of its responses under one model."""

    def to_rows(_item: int, scored: Scored) -> list[Logps]:
        return [Logps([logp for (logp,) in scored.logps])]

    return Scoring(examples, keys, to_rows)

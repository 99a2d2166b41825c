"""Log-probabilities of responses, computed by the workers in pieces that resume."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xlr.maths.batching import Batch, token_budget_batches
from xlr.packing.layout import batch_shape
from xlr.records import DType, Example, Logps, RowKey, Scored, ScoreTask
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.rows import Row
from xlr.work.pieces import Work, resumable


def resumable_logps(
    context: Context,
    target: Artifact,
    pieces: str,
    models: Sequence[str],
    examples: Sequence[Example],
    dtype: DType,
    keys: Sequence[Sequence[RowKey]],
    row_type: type[Row],
    to_rows: Callable[[int, Scored], list[Row]],
    label: str,
    unit: str,
    texts: Sequence[Sequence[str]] | None = None,
    expected: Sequence[str] = (),
) -> list[Row]:
    """Compute the log-probabilities of all examples' responses under the models, in batches of `score.batch_tokens`.

    With `ray.one_model_at_a_time`, the workers compute all examples under the first model, then under the second.

    Args:
        keys: for each example, the keys of the rows it becomes.
        to_rows: converts an example's index, and what the workers found about its responses, to these rows.
        texts: for each example, texts whose languages the workers detect.
        expected: codes of the languages that detection considers, in addition to the most common ones.

    Returns:
        The rows of all examples, in the order of the examples.

    Raises:
        UserError: see `resumable`.
    """
    lengths, padded_rows = batch_shape(examples, context.config.model.attn_implementation)
    batches = token_budget_batches(lengths, context.config.score.batch_tokens, padded_rows)

    def work(
        models: tuple[str, ...], row_type: type[Any], to_rows: Callable[[int, Scored], list[Any]], last: bool
    ) -> Work[Any]:
        def task(batch: Batch) -> ScoreTask:
            asked = tuple(tuple(texts[item]) for item in batch) if texts is not None and last else ()
            return ScoreTask(models, tuple(examples[item] for item in batch), dtype, asked, tuple(expected))

        return Work(
            lambda item: keys[item] if last else keys[item][:1],
            batches,
            task,
            row_type,
            lambda batch, result: [row for item, one in zip(batch, result, strict=True) for row in to_rows(item, one)],
            lambda batch, _: sum(len(response) for item in batch for response in examples[item].responses),
        )

    *first, last = [(model,) for model in models] if context.config.ray.one_model_at_a_time else [tuple(models)]
    known: list[list[Logps]] = []
    for number, own in enumerate(first):
        name = f"{label}, {Path(own[0]).name}"
        of_one = work(own, Logps, _one_model, last=False)
        known.append(resumable(context, target, f"{pieces}-{number}", of_one, name, "examples").rows())

    def all_models(item: int, scored: Scored) -> list[Row]:
        before = [of_model[item].logps for of_model in known]
        logps = [(*earlier, *own) for *earlier, own in zip(*before, scored.logps, strict=True)]
        return to_rows(item, Scored(logps, scored.languages))

    of_all: Work[Row] = work(last, row_type, all_models, last=True)
    return resumable(context, target, pieces, of_all, label, unit).rows()


def _one_model(_item: int, scored: Scored) -> list[Logps]:
    """The row of one example whose log-probabilities were computed under one model."""
    return [Logps([logp for (logp,) in scored.logps])]

"""Work that resumes: workers compute items in batches, and the rows of each finished batch are a file, a piece.

Each piece has a stamp: its number, and a digest of everything that decides its rows (settings, inputs, which rows are
in which piece, precision, device, library versions). A piece with another stamp is not used.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

from xlr.maths.batching import Batch, token_budget_batches
from xlr.packing.layout import batch_shape
from xlr.records import Example, Logps, RowKey, ScoreTask, Task
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import sha256, write_json
from xlr.run.identity import CUT
from xlr.run.rows import Row, read_piece, write_rows
from xlr.settings.config import settings
from xlr.terminal import progress
from xlr.terminal.console import console

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Work(Generic[Row]):
    """Items for the workers, their batches and tasks, and how results become rows."""

    keys: Sequence[Sequence[RowKey]]
    """For each item, the keys of the rows it becomes. A key begins with its language."""
    batches: Sequence[Batch]
    """Indices of the items of each batch. Every item is in one batch."""
    tasks: Sequence[Task]
    """The task of each batch."""
    row_type: type[Row]
    to_rows: Callable[[Batch, Any], list[Row]]
    """Converts a batch's result to rows, in the order of the batch's items."""
    num_tokens: Callable[[Batch, Sequence[Row]], int]
    """Counts the tokens of a finished batch, for the progress view."""

    @property
    def cut(self) -> str:
        """A digest of which rows are in which piece."""
        return sha256(json.dumps([[self.keys[item] for item in batch] for batch in self.batches]))

    def languages(self, batch: Batch) -> Counter[str]:
        """Number of rows of each language in a batch's result."""
        return Counter(key[0] for item in batch for key in self.keys[item])

    def size(self, batch: Batch) -> int:
        """Number of rows in a batch's result."""
        return sum(len(self.keys[item]) for item in batch)


def resumable(context: Context, target: Artifact, pieces: str, work: Work[Row], label: str, unit: str) -> list[Row]:
    """Compute all items, writing each batch's rows to a file as soon as it is finished.

    Args:
        target: the artefact being made.
        pieces: name of the folder of pieces beside it.
        label: name of the step in the progress view. `xlr status` reads the progress from the folder of pieces.
        unit: name of the rows in the progress view.

    Returns:
        The rows of all items, in the order of the items.

    Raises:
        UserError: existing pieces were made with other settings or inputs, or under other conditions.
    """
    if not work.batches:
        return []
    conditions = context.pool.conditions(type(work.tasks[0])) | {CUT: work.cut}
    stamps = target.claim_pieces(pieces, conditions, settings(context.config))
    folder = target.pieces_folder(pieces)
    files = [folder / f"{number:06d}.parquet" for number in range(len(work.batches))]
    known: dict[int, int] = {}
    rows_of: dict[int, list[Row]] = {}
    for number, file in enumerate(files):
        rows = read_piece(file, work.row_type, [f"{stamp} {number}" for stamp in stamps], known)
        if rows is not None and len(rows) == work.size(work.batches[number]):
            rows_of[number] = rows
    missing = [number for number in range(len(files)) if number not in rows_of]
    if unusable := sum(files[number].exists() for number in missing):
        console.print(f"  {label}: {unusable} pieces are damaged or come from another run; they are computed again")
    with _showing(context, folder, work, missing, label, unit) as step:
        for number, result in context.pool.map({number: work.tasks[number] for number in missing}):
            batch = work.batches[number]
            with context.clock.measure("write"):
                rows = work.to_rows(batch, result)
                _require_size(files[number], rows, work.size(batch))
                write_rows(files[number], work.row_type, rows, f"{stamps[-1]} {number}")
            rows_of[number] = rows
            step.workers = context.pool.workers  # includes workers that joined or were lost meanwhile
            step.advance(work.languages(batch), work.num_tokens(batch, rows))
    return _in_item_order(work, rows_of)


@contextlib.contextmanager
def _showing(
    context: Context, folder: Path, work: Work[Row], missing: Sequence[int], label: str, unit: str
) -> Iterator[progress.Step]:
    """Show progress, counting pieces that were finished before. At the end, record the workers' time."""
    totals: Counter[str] = Counter()
    already: Counter[str] = Counter()
    unfinished = set(missing)
    for number, batch in enumerate(work.batches):
        totals.update(work.languages(batch))
        if number not in unfinished:
            already.update(work.languages(batch))
    begun = time.monotonic()
    with progress.step(label, totals, unit, already, partial(write_json, folder / PROGRESS)) as step:
        yield step
    _count_workers(context, time.monotonic() - begun)


def _count_workers(context: Context, seconds: float) -> None:
    """Record how the workers spent their time on average, and how many processors they had."""
    workers = context.pool.workers
    if not workers:
        return
    load = sum(worker.load_seconds for worker in workers) / len(workers)
    compute = sum(worker.compute_seconds for worker in workers) / len(workers)
    context.clock.seconds.update({"load": load, "compute": compute, "wait": max(seconds - load - compute, 0.0)})
    at_work = [worker for worker in workers if not worker.lost]
    context.clock.count_processors(sum(worker.cpus for worker in at_work), sum(worker.gpus for worker in at_work))


def _require_size(file: Path, rows: Sequence[Row], size: int) -> None:
    if len(rows) != size:
        raise RuntimeError(f"{file}: not written: {len(rows)} rows instead of {size}; this is a bug in xlr")


def _in_item_order(work: Work[Row], rows_of: Mapping[int, Sequence[Row]]) -> list[Row]:
    """The rows of all pieces, in the order of the items."""
    of_item: dict[int, list[Row]] = {}
    for number, batch in enumerate(work.batches):
        each = iter(rows_of[number])
        for item in batch:
            of_item[item] = [next(each) for _ in work.keys[item]]
    return [row for item in range(len(work.keys)) for row in of_item[item]]


# The log-probabilities of one example's responses, each under every model.
ExampleLogps = Sequence[tuple[float, ...]]


def resumable_logps(
    context: Context,
    target: Artifact,
    pieces: str,
    models: Sequence[str],
    examples: Sequence[Example],
    keys: Sequence[Sequence[RowKey]],
    row_type: type[Row],
    to_rows: Callable[[int, ExampleLogps], list[Row]],
    label: str,
    unit: str,
) -> list[Row]:
    """Compute the log-probabilities of all examples' responses under the models, in batches of `score.batch_tokens`.

    With `ray.one_model_at_a_time`, the workers compute all examples under the first model, then under the second.

    Args:
        keys: for each example, the keys of the rows it becomes.
        to_rows: converts an example's index and its responses' log-probabilities, in nats, to these rows.

    Returns:
        The rows of all examples, in the order of the examples.

    Raises:
        UserError: see `resumable`.
    """
    lengths, padded_rows = batch_shape(examples, context.config.model.attn_implementation)
    batches = token_budget_batches(lengths, context.config.score.batch_tokens, padded_rows)
    *first, last = [(model,) for model in models] if context.config.ray.one_model_at_a_time else [tuple(models)]
    known: list[list[Logps]] = []
    for number, own in enumerate(first):
        first_keys = [own_keys[:1] for own_keys in keys]
        work = _logps_work(own, examples, batches, first_keys, Logps, _one_model)
        known.append(
            resumable(context, target, f"{pieces}-{number}", work, f"{label}, {Path(own[0]).name}", "examples")
        )

    def all_models(item: int, logps: ExampleLogps) -> list[Row]:
        before = [of_model[item].logps for of_model in known]
        return to_rows(item, [(*earlier, *own) for *earlier, own in zip(*before, logps, strict=True)])

    work_of_last = _logps_work(last, examples, batches, keys, row_type, all_models)
    return resumable(context, target, pieces, work_of_last, label, unit)


def _one_model(_item: int, logps: ExampleLogps) -> list[Logps]:
    """The row of one example whose log-probabilities were computed under one model."""
    return [Logps([logp for (logp,) in logps])]


def _logps_work(
    models: tuple[str, ...],
    examples: Sequence[Example],
    batches: Sequence[Batch],
    keys: Sequence[Sequence[RowKey]],
    row_type: type[Row],
    to_rows: Callable[[int, ExampleLogps], list[Row]],
) -> Work[Row]:
    """The work of computing the examples' log-probabilities under the models; see `resumable_logps`."""
    return Work(
        keys,
        batches,
        [ScoreTask(models, tuple(examples[item] for item in batch)) for batch in batches],
        row_type,
        lambda batch, result: [row for item, logps in zip(batch, result, strict=True) for row in to_rows(item, logps)],
        lambda batch, _: sum(len(response) for item in batch for response in examples[item].responses),
    )

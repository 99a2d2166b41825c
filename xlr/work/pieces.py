"""Work that resumes: workers compute items in batches, and the rows of each finished batch are a file, a piece.

Each piece has a stamp: its number, and a digest of everything that decides its rows (settings, inputs, which rows are
in which piece, precision, device, library versions). A piece with another stamp is not used.

Threads write the pieces, so that the loop that hands out tasks waits for no disk. Rows stay in the files: memory does
not grow with their number.
"""

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

from xlr.errors import UserError
from xlr.maths.batching import Batch
from xlr.records import RowKey, Task
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import write_json
from xlr.run.identity import CUT
from xlr.run.rows import Row, piece_table, records, write_rows
from xlr.settings.config import settings
from xlr.terminal import progress
from xlr.terminal.console import console

PROGRESS = "progress.json"
_WRITERS = 4  # threads: a file system may take long to flush a file
_BACKLOG = 16  # results that may wait to be written


@dataclass(frozen=True)
class Work(Generic[Row]):
    """Items for the workers, their batches and tasks, and how results become rows."""

    keys: Callable[[int], Sequence[RowKey]]
    """The keys of the rows that an item becomes. A key begins with its language."""
    batches: Sequence[Batch]
    """Indices of the items of each batch. Every item is in one batch."""
    task: Callable[[Batch], Task]
    """The task of a batch."""
    row_type: type[Row]
    to_rows: Callable[[Batch, Any], list[Row]]
    """Converts a batch's result to rows, in the order of the batch's items. Called in a thread."""
    num_tokens: Callable[[Batch, Sequence[Row]], int]
    """Counts the tokens of a finished batch, for the progress view."""

    @property
    def cut(self) -> str:
        """A digest of which rows are in which piece."""
        digest = hashlib.sha256()
        for batch in self.batches:
            digest.update(json.dumps([self.keys(item) for item in batch]).encode())
        return digest.hexdigest()

    def languages(self, batch: Batch) -> Counter[str]:
        """Number of rows of each language in a batch's result."""
        return Counter(key[0] for item in batch for key in self.keys(item))

    def size(self, batch: Batch) -> int:
        """Number of rows in a batch's result."""
        return sum(len(self.keys(item)) for item in batch)


@dataclass(frozen=True)
class Pieces(Generic[Row]):
    """The finished pieces of work: one file for each batch."""

    work: Work[Row]
    files: Sequence[Path]
    stamps: Sequence[str]

    def find(self, number: int) -> Any:
        """The Arrow table of a piece; None if it is missing, damaged or of other work."""
        table = piece_table(self.files[number], self.work.row_type, [f"{stamp} {number}" for stamp in self.stamps])
        sound = table is not None and table.num_rows == self.work.size(self.work.batches[number])
        return table if sound else None

    def table(self, items: range) -> Any:
        """The rows of these items, in their order, as an Arrow table. No batch has other items beside these."""
        import pyarrow as pa

        numbers = [number for number, batch in enumerate(self.work.batches) if batch[0] in items]
        tables = pa.concat_tables([self._require(number) for number in numbers])
        item_of_row = [item for number in numbers for item in self._items_of_rows(number)]
        return tables.take(sorted(range(len(item_of_row)), key=item_of_row.__getitem__))

    def rows(self) -> list[Row]:
        """All rows, in the order of the items."""
        of_item: dict[int, list[Row]] = {}
        known: dict[int, int] = {}
        for number in range(len(self.files)):
            read = records(self._require(number), self.work.row_type, known)
            for item, row in zip(self._items_of_rows(number), read, strict=True):
                of_item.setdefault(item, []).append(row)
        return [row for item in sorted(of_item) for row in of_item[item]]

    def _items_of_rows(self, number: int) -> list[int]:
        return [item for item in self.work.batches[number] for _ in self.work.keys(item)]

    def _require(self, number: int) -> Any:
        table = self.find(number)
        if table is None:
            raise UserError(f"{self.files[number]}: damaged since it was written; start again to compute it again")
        return table


class _Tasks(Mapping[int, Task]):
    """Number of a batch -> its task, made when it is handed out."""

    def __init__(self, work: Work[Any], numbers: Sequence[int]):
        self._work, self._numbers = work, numbers

    def __getitem__(self, number: int) -> Task:
        return self._work.task(self._work.batches[number])

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def resumable(context: Context, target: Artifact, pieces: str, work: Work[Row], label: str, unit: str) -> Pieces[Row]:
    """Compute all items, writing each batch's rows to a file as soon as it is finished.

    Args:
        target: the artefact being made.
        pieces: name of the folder of pieces beside it.
        label: name of the step in the progress view. `xlr status` reads the progress from the folder of pieces.
        unit: name of the rows in the progress view.

    Raises:
        UserError: existing pieces were made with other settings or inputs, or under other conditions.
    """
    if not work.batches:
        return Pieces(work, [], [])
    conditions = context.pool.conditions(work.task(work.batches[0])) | {CUT: work.cut}
    stamps = target.claim_pieces(pieces, conditions, settings(context.config))
    folder = target.pieces_folder(pieces)
    found = Pieces(work, [folder / f"{number:06d}.parquet" for number in range(len(work.batches))], stamps)
    missing = [number for number in range(len(work.batches)) if found.find(number) is None]
    if unusable := sum(found.files[number].exists() for number in missing):
        console.print(f"  {label}: {unusable} pieces are damaged or come from another run; they are computed again")
    advancing = threading.Lock()
    with (
        _showing(context, folder, work, missing, label, unit) as step,
        ThreadPoolExecutor(_WRITERS) as writers,  # waits for its threads at the end, even if a worker failed
    ):

        def write(number: int, result: Any) -> None:
            tokens = _write(found, number, result)
            with advancing:
                step.workers = context.pool.workers  # includes workers that joined or were lost meanwhile
                step.advance(work.languages(work.batches[number]), tokens)

        pending: deque[Future[None]] = deque()
        for number, result in context.pool.map(_Tasks(work, missing)):
            pending.append(writers.submit(write, number, result))
            _wait(context, pending, _BACKLOG)
        _wait(context, pending, 0)
    return found


def _wait(context: Context, pending: "deque[Future[None]]", most: int) -> None:
    """Wait until no more than `most` pieces are unwritten. Raises what a thread raised."""
    while pending and (pending[0].done() or len(pending) > most):
        with context.clock.measure("write"):
            pending.popleft().result()


def _write(pieces: Pieces[Row], number: int, result: Any) -> int:
    """Write the piece of a batch's result; return its tokens."""
    work, file = pieces.work, pieces.files[number]
    batch = work.batches[number]
    rows = work.to_rows(batch, result)
    if len(rows) != work.size(batch):
        raise RuntimeError(f"{file}: not written: {len(rows)} rows instead of {work.size(batch)}; this is a bug in xlr")
    write_rows(file, work.row_type, rows, f"{pieces.stamps[-1]} {number}")
    return work.num_tokens(batch, rows)


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

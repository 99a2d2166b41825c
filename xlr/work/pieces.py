"""Work that resumes: workers compute shards in batches, and the rows of each finished batch are a file, a piece.

The pieces of a finished shard become one file, with the rows in the order of its items. Each file has a stamp: a digest
of everything that decides its rows (settings, inputs, which rows are in it, precision, device, library versions). A
file with another stamp is not used.

Threads plan the next shard and write the files, so that the loop that hands out tasks waits for no disk. Memory holds a
few shards, whatever their number.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

from xlr.errors import UserError
from xlr.records import Task
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import remove, sha256, write_json
from xlr.run.identity import CUT
from xlr.run.rows import Row, piece_table, records, schema, write_rows, write_stamped
from xlr.settings.deciding import settings
from xlr.terminal import progress
from xlr.terminal.console import console
from xlr.work.shards import Shard, Work

PROGRESS = "progress.json"
_WRITERS = 4  # threads: a file system may take long to flush a file
_BACKLOG = 16  # results that may wait to be written


@dataclass(frozen=True)
class Finished(Generic[Row]):
    """The finished shards of a stage: a file each."""

    row_type: type[Row]
    files: Mapping[str, Path]
    """Name of the shard -> its file."""
    stamps: Mapping[str, Sequence[str]]
    """Name of the shard -> the stamps that its file may have."""

    def find(self, name: str) -> Any:
        """The Arrow table of a shard; None if its file is missing, damaged or of other work."""
        return piece_table(self.files[name], self.row_type, self.stamps[name])

    def table(self, name: str) -> Any:
        """The rows of a shard, in the order of its items, as an Arrow table.

        Raises:
            UserError: the file was damaged since it was written.
        """
        table = self.find(name)
        if table is None:
            raise UserError(f"{self.files[name]}: damaged since it was written; start again to compute it again")
        return table

    def rows(self, *names: str) -> list[Row]:
        """The rows of these shards, or of all, in the order of their items.

        Raises:
            UserError: see `table`.
        """
        return [row for name in names or self.files for row in records(self.table(name), self.row_type)]


class _Open(Generic[Row]):
    """A shard that is being computed: its plan, and its pieces."""

    def __init__(self, shard: Shard[Work[Row]], finished: Finished[Row]):
        self.name = shard.name
        self.work = shard.plan()
        self._finished = finished
        self._file = finished.files[shard.name]
        cut = self.work.cut
        self._stamps = [f"{stamp} {cut}" for stamp in finished.stamps[shard.name]]
        numbers = range(len(self.work.batches))
        self.missing = [number for number in numbers if self._find(number) is None]
        self.unusable = sum(self._piece(number).exists() for number in self.missing)
        self._unwritten = set(self.missing)
        self._lock = threading.Lock()

    @property
    def already(self) -> Counter[str]:
        """Rows by language in the pieces that were there before."""
        missing = set(self.missing)
        there = (batch for number, batch in enumerate(self.work.batches) if number not in missing)
        return sum(map(self.work.languages, there), Counter[str]())

    def _piece(self, number: int) -> Path:
        return self._file.with_suffix("") / f"{number:06d}.parquet"

    def _find(self, number: int) -> Any:
        table = piece_table(self._piece(number), self._finished.row_type, [f"{own} {number}" for own in self._stamps])
        sound = table is not None and table.num_rows == self.work.size(self.work.batches[number])
        return table if sound else None

    def write(self, number: int, result: Any) -> int:
        """Write the piece of a batch's result, and the shard if it is the last; return the tokens of the batch."""
        file, batch = self._piece(number), self.work.batches[number]
        rows = self.work.to_rows(batch, result)
        if len(rows) != self.work.size(batch):
            raise RuntimeError(
                f"{file}: not written: {len(rows)} rows instead of {self.work.size(batch)}; this is a bug in xlr"
            )
        write_rows(file, self._finished.row_type, rows, f"{self._stamps[-1]} {number}")
        with self._lock:
            self._unwritten.discard(number)
            last = not self._unwritten
        if last:
            self.merge()
        return self.work.num_tokens(batch, rows)

    def merge(self) -> None:
        """Write the shard from its pieces, and remove these.

        Raises:
            UserError: a piece was damaged since it was written.
        """
        import pyarrow as pa

        tables = [self._find(number) for number in range(len(self.work.batches))]
        if damaged := [self._piece(number) for number, table in enumerate(tables) if table is None]:
            raise UserError(f"{damaged[0]}: damaged since it was written; start again to compute it again")
        places = self.work.place_of_row
        tables = tables or [schema(self._finished.row_type).empty_table()]
        in_order = pa.concat_tables(tables).take(sorted(range(len(places)), key=places.__getitem__))
        del tables  # a shard takes some 100 MB
        write_stamped(self._file, in_order, self._finished.stamps[self.name][-1])
        remove(self._file.with_suffix(""))


def claimed(
    context: Context,
    target: Artifact,
    pieces: str,
    row_type: type[Row],
    shards: Sequence[Shard[Any]],
    conditions: Mapping[str, str | None],
) -> Finished[Row]:
    """The files of shards, which may not be there yet, in a folder of pieces that belongs to this artefact.

    Args:
        pieces: name of the folder beside the artefact.
        conditions: what decides the rows in addition to the artefact's settings and inputs.

    Raises:
        UserError: existing pieces were made with other settings or inputs, or under other conditions.
    """
    cut = sha256("\n".join(f"{shard.name} {shard.digest}" for shard in shards))
    stamps = target.claim_pieces(pieces, {**conditions, CUT: cut}, settings(context.config))
    folder = target.pieces_folder(pieces)
    return Finished(
        row_type,
        {shard.name: folder / f"{shard.name}.parquet" for shard in shards},
        {shard.name: [f"{stamp} {shard.name} {shard.digest}" for stamp in stamps] for shard in shards},
    )


def resumable(
    context: Context,
    target: Artifact,
    pieces: str,
    row_type: type[Row],
    like: Task,
    shards: Sequence[Shard[Work[Row]]],
    label: str,
    unit: str,
) -> Finished[Row]:
    """Compute all shards, writing each batch's rows to a file as soon as it is finished.

    Args:
        target: the artefact being made.
        pieces: name of the folder of pieces beside it.
        like: a task like those of the shards. It may be empty: it says under which conditions they are computed.
        label: name of the step in the progress view. `xlr status` reads the progress from the folder of pieces.
        unit: name of the rows in the progress view.

    Raises:
        UserError: existing pieces were made with other settings or inputs, or under other conditions.
    """
    if not shards:
        return Finished(row_type, {}, {})
    finished = claimed(context, target, pieces, row_type, shards, context.pool.conditions(like))
    missing = [shard for shard in sorted(shards, key=lambda own: own.rank) if finished.find(shard.name) is None]
    _say_unusable(label, sum(finished.files[shard.name].exists() for shard in missing))
    totals = sum((shard.totals for shard in shards), Counter[str]())
    already = totals - sum((shard.totals for shard in missing), Counter[str]())
    begun = time.monotonic()
    with progress.step(
        label, totals, unit, already, partial(write_json, target.pieces_folder(pieces) / PROGRESS)
    ) as step:
        _compute(context, step, missing, finished)
    _count_workers(context, time.monotonic() - begun)
    return finished


def _say_unusable(label: str, count: int) -> None:
    if count:
        console.print(f"  {label}: {count} pieces are damaged or come from another run; they are computed again")


def _compute(
    context: Context, step: progress.Step, missing: Sequence[Shard[Work[Row]]], finished: Finished[Row]
) -> None:
    """Compute the missing shards."""
    in_hand: dict[str, _Open[Row]] = {}
    advancing = threading.Lock()
    pending: deque[Future[None]] = deque()

    def write(shard: _Open[Row], number: int, result: Any) -> None:
        tokens = shard.write(number, result)
        with advancing:
            step.workers = context.pool.workers  # includes workers that joined or were lost meanwhile
            step.advance(shard.work.languages(shard.work.batches[number]), tokens)

    with ThreadPoolExecutor(_WRITERS) as writers:  # waits for its threads at the end, even if a worker failed

        def tasks() -> Iterator[tuple[tuple[str, int], Task]]:
            for shard, opened in _planned(context, missing, finished):
                _say_unusable(step.label, opened.unusable)
                with advancing:
                    step.recount(shard.totals, opened.work.totals, opened.already)
                if opened.missing:
                    in_hand[opened.name] = opened
                else:
                    pending.append(writers.submit(opened.merge))
                for number in opened.missing:
                    yield (opened.name, number), opened.work.task(opened.work.batches[number])

        unfinished: Counter[str] = Counter()
        for (name, number), result in context.pool.map(tasks()):
            shard = in_hand[name]
            unfinished[name] += 1
            if unfinished[name] == len(shard.missing):
                del in_hand[name]
            pending.append(writers.submit(write, shard, number, result))
            _wait(context, pending, _BACKLOG)
        _wait(context, pending, 0)


def _planned(
    context: Context, shards: Sequence[Shard[Work[Row]]], finished: Finished[Row]
) -> Iterator[tuple[Shard[Work[Row]], _Open[Row]]]:
    """The shards with their plans. A thread plans the next one while the workers compute the one before it."""
    with ThreadPoolExecutor(1) as planner:
        ahead: deque[Future[_Open[Row]]] = deque()
        for number, shard in enumerate(shards):
            for later in shards[number + len(ahead) : number + 2]:
                ahead.append(planner.submit(_Open, later, finished))
            with context.clock.measure("plan"):
                opened = ahead.popleft().result()
            yield shard, opened


def _wait(context: Context, pending: "deque[Future[None]]", most: int) -> None:
    """Wait until no more than `most` pieces are unwritten. Raises what a thread raised."""
    while pending and (pending[0].done() or len(pending) > most):
        with context.clock.measure("write"):
            pending.popleft().result()


def _count_workers(context: Context, seconds: float) -> None:
    """Record how the workers spent their time on average, and how many processors they had."""
    workers = context.pool.workers
    if not workers:
        return
    load = sum(worker.load_seconds for worker in workers) / len(workers)
    compute = sum(worker.compute_seconds for worker in workers) / len(workers)
    for name, spent in {"load": load, "compute": compute, "wait": max(seconds - load - compute, 0.0)}.items():
        context.clock.seconds[name] += spent  # a stage may ask the workers several times
    context.clock.count_memory(max(worker.peak_memory for worker in workers))
    at_work = [worker for worker in workers if not worker.lost]
    context.clock.count_processors(sum(worker.cpus for worker in at_work), sum(worker.gpus for worker in at_work))

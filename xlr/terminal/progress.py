"""The progress of a long step, for its user: a live view on a terminal, lines of text elsewhere.

The state of a step is plain JSON: the step writes it to a file from time to time, and `xlr status` shows it from there.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import cast

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from typing_extensions import NotRequired, TypedDict

from xlr.terminal.console import console, duration

LINE_SECONDS = 15.0  # between lines of text
_KEEP_SECONDS = 5.0  # between writes of the state
_WORKERS_SHOWN = 16  # with more workers, one line per node


class Clock:
    """Measures where the time of a stage goes: seconds by name."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.processors = {"cpus": 1.0, "gpus": 0.0}
        """Peak number of processors in use; at least one CPU, for this process."""
        self.memory = 0
        """Peak memory in bytes of a process that computed; 0 where it is not known."""

    @property
    def total(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._started

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of the block to the seconds of a name."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - begun

    def count_processors(self, cpus: float, gpus: float) -> None:
        """Record that a part of the stage uses this many processors."""
        counted = {"cpus": cpus, "gpus": gpus}
        self.processors = {name: max(peak, counted[name]) for name, peak in self.processors.items()}

    def count_memory(self, peak: int) -> None:
        """Record the peak memory of a process that computes, in bytes."""
        self.memory = max(self.memory, peak)

    def table(self) -> Table:
        """The seconds of every name and their share of the total, for the end of a stage."""
        total = self.total
        table = Table(title="where the time went", title_justify="left")
        for name in self.seconds:
            table.add_column(name, justify="right")
        table.add_column("all", justify="right")
        shares = [f"{duration(seconds)} ({100 * seconds / total:.0f} %)" for seconds in self.seconds.values()]
        table.add_row(*shares, duration(total))
        return table


@dataclass
class Tally:
    """What one worker did in a step."""

    node: str
    tasks: int = 0
    load_seconds: float = 0.0
    compute_seconds: float = 0.0
    splits: int = 0
    lost: bool = False
    peak_memory: int = 0
    cpus: float = 0
    gpus: float = 0


class WorkerState(TypedDict):
    """A `Tally` as JSON."""

    node: str
    tasks: int
    load_seconds: float
    compute_seconds: float
    splits: int
    lost: bool
    peak_memory: NotRequired[int]  # files of earlier versions lack it
    cpus: float
    gpus: float


class StepState(TypedDict):
    """A step as JSON: everything that is shown of it."""

    label: str
    unit: str
    languages: dict[str, list[int]]
    """Language -> finished units, all units."""
    already: int
    """Units that an earlier run finished."""
    tokens: int
    """Tokens of the units that this run finished."""
    seconds: float
    """Seconds since this run began."""
    workers: list[WorkerState]
    note: str
    """Text for the end of the line."""


class Step:
    """A running step; call `advance` as units finish.

    Args:
        totals: number of units by language; a step without languages has one entry with an empty name.
        already: number of units by language that an earlier run finished.
        keep: called with the state every few seconds.
    """

    def __init__(
        self,
        label: str,
        totals: Mapping[str, int],
        unit: str,
        already: Mapping[str, int],
        keep: Callable[[StepState], None],
    ):
        self.label, self.unit = label, unit
        self._totals = Counter(totals)
        self._already = sum(already.values())
        self._done = Counter(already)
        self._tokens = 0
        self.workers: Sequence[Tally] = ()
        self._note = ""
        self._keep = keep
        self._kept = -math.inf
        self._started = self._printed = time.monotonic()

    def recount(self, estimated: Mapping[str, int], counted: Mapping[str, int], already: Mapping[str, int]) -> None:
        """Correct the totals of a part of the step once it is known, and add what an earlier run finished of it."""
        self._totals.subtract(estimated)
        self._totals.update(counted)
        self._already += sum(already.values())
        self._done.update(already)

    def advance(self, units: Mapping[str, int], tokens: int = 0, note: str = "") -> None:
        """Count finished units by language and their tokens; show and keep the state if it is time."""
        self._done.update(units)
        self._tokens += tokens
        self._note = note or self._note
        now = time.monotonic()
        if now - self._printed >= LINE_SECONDS:
            self._printed = now
            self._show()
        if now - self._kept >= _KEEP_SECONDS:
            self._kept = now
            self._keep(self.state())

    def state(self) -> StepState:
        """The state, ready for JSON."""
        return {
            "label": self.label,
            "unit": self.unit,
            "languages": {lang: [self._done[lang], self._totals[lang]] for lang in sorted(self._totals)},
            "already": self._already,
            "tokens": self._tokens,
            "seconds": time.monotonic() - self._started,
            "workers": [cast("WorkerState", asdict(worker)) for worker in self.workers],
            "note": self._note,
        }

    def _show(self) -> None:
        console.print(f"  {headline(self.state())}")

    def close(self) -> None:
        """Print the final state."""
        state = self.state()
        console.print(f"  {headline(state)} in {duration(state['seconds'])}")


def headline(state: StepState) -> str:
    """A step in one line: units, rates and time left."""
    done, total = _units(state)
    rate = (done - state["already"]) / max(state["seconds"], 1e-9)
    parts = [f"{state['label']}: {done}/{total} {state['unit']}", f"{rate:.3g}/s"]
    if state["tokens"]:
        parts.append(f"{state['tokens'] / state['seconds']:,.0f} tokens/s")
    if done < total and rate:
        parts.append(f"{duration((total - done) / rate)} left")
    if retries := _retries(state["workers"]):
        parts.append(retries)
    return ", ".join(parts) + (f" {state['note']}" if state["note"] else "")


def _units(state: StepState) -> tuple[int, int]:
    """Finished units and all units, over all languages."""
    pairs = state["languages"].values()
    return sum(done for done, _ in pairs), sum(total for _, total in pairs)


def _retries(workers: Sequence[WorkerState]) -> str:
    lost, splits = sum(worker["lost"] for worker in workers), sum(worker["splits"] for worker in workers)
    found = [f"workers lost: {lost}"] * bool(lost) + [f"batches split for memory: {splits}"] * bool(splits)
    return ", ".join(found)


def details(state: StepState) -> list[str]:
    """A line of languages, then a line per worker, or per node if there are many workers."""
    languages = [f"{lang} {done}/{total}" for lang, (done, total) in state["languages"].items() if lang]
    lines = ["   ".join(languages)] if languages else []
    workers = state["workers"]
    if len(workers) <= _WORKERS_SHOWN:
        return lines + [_worker_line(worker["node"], [worker], state["seconds"]) for worker in workers]
    nodes = dict.fromkeys(worker["node"] for worker in workers)
    by_node = {node: [worker for worker in workers if worker["node"] == node] for node in nodes}
    return lines + [_worker_line(f"{node}: {len(own)} workers", own, state["seconds"]) for node, own in by_node.items()]


def _worker_line(name: str, workers: Sequence[WorkerState], seconds: float) -> str:
    tasks = sum(worker["tasks"] for worker in workers)
    load = sum(worker["load_seconds"] for worker in workers)
    compute = sum(worker["compute_seconds"] for worker in workers)
    share = 100 * compute / max(seconds * len(workers), 1e-9)
    lost = ", lost" if all(worker["lost"] for worker in workers) else ""
    return f"{name}: {tasks} tasks, computing {share:.0f} % of the time, loading {duration(load)}{lost}"


class _LiveStep(Step):
    """A step on a terminal: a bar that is redrawn every second."""

    def _show(self) -> None:
        pass

    def __rich__(self) -> Group:
        state = self.state()
        done, total = _units(state)
        lines = [Text(f"  {line}", no_wrap=True, overflow="ellipsis") for line in (headline(state), *details(state))]
        return Group(lines[0], ProgressBar(total=total, completed=done, width=60), *lines[1:])


@contextmanager
def step(
    label: str,
    totals: Mapping[str, int],
    unit: str,
    already: Mapping[str, int],
    keep: Callable[[StepState], None],
) -> Iterator[Step]:
    """Show a step while the block runs; arguments as for `Step`."""
    if console.is_terminal:
        live = _LiveStep(label, totals, unit, already, keep)
        with Live(live, console=console, refresh_per_second=1, transient=True, redirect_stderr=False):
            yield live
        live.close()
    else:
        plain = Step(label, totals, unit, already, keep)
        yield plain
        plain.close()

"""What a user sees of a long step: a live view on a terminal, plain lines elsewhere, the same in another shell.

A step's state is a plain dictionary, so that `xlr status` can show it from a file as the step itself does.
"""

import math
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 15.0
_KEEP_SECONDS = 5.0
_WORKERS_SHOWN = 16

# A file or a job's log has no width of its own, for which rich takes 80, and breaks tables.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120

console = Console(highlight=False, soft_wrap=True, width=_WIDTH)


def duration(seconds: float) -> str:
    """`75.2` -> `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Clock:
    """Where the time of a stage goes, by name, in seconds."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.processors = {"cpus": 1.0, "gpus": 0.0}
        """The most that computed at a time; one CPU is this process itself."""

    @property
    def total(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._started

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the time inside under a name."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - begun

    def count_processors(self, cpus: float, gpus: float) -> None:
        """Note that a part of the stage computes on so many."""
        counted = {"cpus": cpus, "gpus": gpus}
        self.processors = {name: max(most, counted[name]) for name, most in self.processors.items()}

    def table(self) -> Table:
        """The closing table: every name's time and share of the whole."""
        whole = self.total
        table = Table(title="where the time went", title_justify="left")
        for name in self.seconds:
            table.add_column(name, justify="right")
        table.add_column("all", justify="right")
        shares = [f"{duration(seconds)} ({100 * seconds / whole:.0f} %)" for seconds in self.seconds.values()]
        table.add_row(*shares, duration(whole))
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
    cpus: float = 0
    gpus: float = 0


class Step:
    """A running step; `advance` is called as its units finish.

    Args:
        totals: units by language; a step that knows of no languages has one of the empty name.
        already: those of them that an earlier run finished.
        keep: is given the state now and then, for other shells.
    """

    def __init__(
        self,
        label: str,
        totals: Mapping[str, int],
        unit: str,
        already: Mapping[str, int],
        keep: Callable[[dict[str, Any]], None],
    ):
        self.label, self.unit = label, unit
        self._totals = totals
        self._already = sum(already.values())
        self._done = Counter(already)
        self._tokens = 0
        self.workers: Sequence[Tally] = ()
        self._note = ""
        self._keep = keep
        self._kept = -math.inf
        self._started = self._printed = time.monotonic()

    def advance(self, units: Mapping[str, int], tokens: int = 0, note: str = "") -> None:
        """Count finished units by language, and what they hold, and show them now and then."""
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

    def state(self) -> dict[str, Any]:
        """Everything that is shown, ready for JSON."""
        return {
            "label": self.label,
            "unit": self.unit,
            "languages": {lang: [self._done[lang], self._totals[lang]] for lang in sorted(self._totals)},
            "already": self._already,
            "tokens": self._tokens,
            "seconds": time.monotonic() - self._started,
            "workers": [asdict(worker) for worker in self.workers],
            "note": self._note,
        }

    def _show(self) -> None:
        console.print(f"  {headline(self.state())}")

    def close(self) -> None:
        """Say how it ended."""
        state = self.state()
        console.print(f"  {headline(state)} in {duration(state['seconds'])}")


def headline(state: Mapping[str, Any]) -> str:
    """A step's state in one line: how much, how fast, how long."""
    done, total = _amount(state)
    rate = (done - state["already"]) / max(state["seconds"], 1e-9)
    parts = [f"{state['label']}: {done}/{total} {state['unit']}", f"{rate:.3g}/s"]
    if state["tokens"]:
        parts.append(f"{state['tokens'] / state['seconds']:,.0f} tokens/s")
    if done < total and rate:
        parts.append(f"{duration((total - done) / rate)} left")
    if retries := _retries(state["workers"]):
        parts.append(retries)
    return ", ".join(parts) + (f" {state['note']}" if state["note"] else "")


def _amount(state: Mapping[str, Any]) -> tuple[int, int]:
    """Units that are done, and all; none of either where there is nothing to do."""
    pairs = state["languages"].values()
    return sum(done for done, _ in pairs), sum(total for _, total in pairs)


def _retries(workers: Sequence[Mapping[str, Any]]) -> str:
    lost, splits = sum(worker["lost"] for worker in workers), sum(worker["splits"] for worker in workers)
    found = [f"workers lost: {lost}"] * bool(lost) + [f"batches split for memory: {splits}"] * bool(splits)
    return ", ".join(found)


def details(state: Mapping[str, Any]) -> list[str]:
    """A step's languages, and its workers: each, or by node where they are many."""
    languages = [f"{lang} {done}/{total}" for lang, (done, total) in state["languages"].items() if lang]
    lines = ["   ".join(languages)] if languages else []
    workers = state["workers"]
    if len(workers) <= _WORKERS_SHOWN:
        return lines + [_worker_line(worker["node"], [worker], state["seconds"]) for worker in workers]
    nodes = dict.fromkeys(worker["node"] for worker in workers)
    by_node = {node: [worker for worker in workers if worker["node"] == node] for node in nodes}
    return lines + [_worker_line(f"{node}: {len(own)} workers", own, state["seconds"]) for node, own in by_node.items()]


def _worker_line(name: str, workers: Sequence[Mapping[str, Any]], seconds: float) -> str:
    tasks = sum(worker["tasks"] for worker in workers)
    load, compute = (sum(worker[f"{kind}_seconds"] for worker in workers) for kind in ("load", "compute"))
    share = 100 * compute / max(seconds * len(workers), 1e-9)
    lost = ", lost" if all(worker["lost"] for worker in workers) else ""
    return f"{name}: {tasks} tasks, computing {share:.0f} % of the time, loading {duration(load)}{lost}"


class _LiveStep(Step):
    """A step on a terminal: a bar, drawn anew every second."""

    def _show(self) -> None:
        pass

    def __rich__(self) -> Group:
        state = self.state()
        done, total = _amount(state)
        lines = [Text(f"  {line}", no_wrap=True, overflow="ellipsis") for line in (headline(state), *details(state))]
        return Group(lines[0], ProgressBar(total=total, completed=done, width=60), *lines[1:])


@contextmanager
def step(
    label: str,
    totals: Mapping[str, int],
    unit: str,
    already: Mapping[str, int],
    keep: Callable[[dict[str, Any]], None],
) -> Iterator[Step]:
    """Show a step while the block runs; the arguments are `Step`'s."""
    if console.is_terminal:
        live = _LiveStep(label, totals, unit, already, keep)
        with Live(live, console=console, refresh_per_second=1, transient=True, redirect_stderr=False):
            yield live
        live.close()
    else:
        plain = Step(label, totals, unit, already, keep)
        yield plain
        plain.close()

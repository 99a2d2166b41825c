"""What a user sees of a long step: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 15.0

console = Console(highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """`75.2` -> `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Step:
    """A running step; `advance` is called as its units finish."""

    def __init__(self, label: str, total: int, unit: str, already: int):
        self.label, self.total, self.unit = label, total, unit
        self.done = self._already = already
        self.note = ""
        self.started = self._printed = time.monotonic()

    @property
    def rate(self) -> float:
        """Units a second, of those done since the start."""
        return (self.done - self._already) / max(time.monotonic() - self.started, 1e-9)

    def advance(self, units: int, note: str = "") -> None:
        """Count finished units and show them now and then."""
        self.done += units
        self.note = note or self.note
        if time.monotonic() - self._printed >= LINE_SECONDS:
            self._printed = time.monotonic()
            self.show()

    def show(self) -> None:
        """Print the state as a plain line."""
        left = (self.total - self.done) / self.rate if self.rate else 0
        console.print(
            f"  {self.label}: {self.done}/{self.total} {self.unit}, {self.rate:.3g}/s, "
            f"{duration(left)} left {self.note}".rstrip()
        )

    def close(self) -> None:
        """Say how it ended."""
        seconds = time.monotonic() - self.started
        console.print(
            f"  {self.label}: {self.done}/{self.total} {self.unit} in {duration(seconds)} "
            f"({self.rate:.3g}/s) {self.note}".rstrip()
        )


class _Bar(Step):
    def __init__(self, label: str, total: int, unit: str, already: int, progress: Progress):
        super().__init__(label, total, unit, already)
        self._progress = progress
        self._task = progress.add_task(label, total=total, completed=already, unit=unit, rate="", note="")

    def advance(self, units: int, note: str = "") -> None:
        self.done += units
        self.note = note or self.note
        self._progress.update(self._task, completed=self.done, rate=f"{self.rate:.3g}/s", note=self.note)


@contextmanager
def step(label: str, total: int, unit: str, already: int = 0, quiet: bool = False) -> Iterator[Step]:
    """Show a step of `total` units while the block runs.

    Args:
        already: units that an earlier run finished.
        quiet: show nothing (ranks other than 0).
    """
    if quiet:
        silent = Step(label, total, unit, already)
        silent.show = silent.close = lambda: None  # type: ignore[method-assign]
        yield silent
    elif console.is_terminal and sys.stdout.isatty():
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=True, redirect_stderr=False) as progress:
            bar = _Bar(label, total, unit, already, progress)
            yield bar
        bar.close()
    else:
        plain = Step(label, total, unit, already)
        yield plain
        plain.close()

"""Output for the user: the console, durations, and tables for the terminal and for Markdown."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import rich.console
import rich.table
from rich.segment import Segment
from rich.text import Text

from xlr.foreign.texts import shown

# rich assumes 80 columns where the output is no terminal, which breaks the tables in files and job logs.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120


class Console(rich.console.Console):
    """Prints every text literally: no markup and no emoji codes, and control characters written out.

    Names, answers and error messages from files, endpoints and models thus cannot steer the terminal.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """A plain text, also one in a table, as rich prints it."""
        return super().render_str(shown(text), **settings)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """The pieces of anything printed: the backstop for texts that were not plain."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else shown(text), style, control)


console = Console(soft_wrap=True, width=_WIDTH)


def duration(seconds: float) -> str:
    """`75.2` -> `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(num_bytes: int) -> str:
    """`1234567890` -> `1.23 GB`."""
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


@dataclass(frozen=True)
class Column:
    """A column's heading, and whether its cells are numbers, which are aligned right."""

    heading: str
    numeric: bool


def text_columns(*headings: str) -> tuple[Column, ...]:
    """Columns of texts."""
    return tuple(Column(heading, numeric=False) for heading in headings)


def number_columns(*headings: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(heading, numeric=True) for heading in headings)


@dataclass(frozen=True)
class Table:
    """A table of plain text cells. Its title may be empty."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, ...]]

    def on_terminal(self) -> rich.table.Table:
        """The table for `console`, which prints its texts literally."""
        table = rich.table.Table(title=self.title, title_justify="left")
        for column in self.columns:
            table.add_column(column.heading, justify="right" if column.numeric else "left", no_wrap=not table.columns)
        for row in self.rows:
            table.add_row(*row)
        return table

    def in_markdown(self) -> str:
        """The table as a pipe table, as GitHub reads it."""
        headings = [column.heading for column in self.columns]
        rules = ["---:" if column.numeric else "---" for column in self.columns]
        lines = [headings, rules, *([plain(cell) for cell in row] for row in self.rows)]
        return f"### {plain(self.title)}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plain(text: str) -> str:
    """The text on one line, with every character escaped that Markdown would interpret."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())

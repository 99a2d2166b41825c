"""Output for the user: the console, durations, and tables for the terminal and for Markdown."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import rich.table
from rich.console import Console
from rich.markup import escape

# rich assumes 80 columns where the output is no terminal, which breaks the tables in files and job logs.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120

console = Console(highlight=False, soft_wrap=True, width=_WIDTH)


def duration(seconds: float) -> str:
    """`75.2` -> `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


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
        """The table for rich's console."""
        shown = rich.table.Table(title=self.title, title_justify="left")
        for column in self.columns:
            shown.add_column(column.heading, justify="right" if column.numeric else "left", no_wrap=not shown.columns)
        for row in self.rows:
            shown.add_row(*map(escape, row))
        return shown

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

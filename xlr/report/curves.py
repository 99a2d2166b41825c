"""What the report's plots draw, computed again from a run's rows: rewards, length gaps, training metrics."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xlr.records import Score
from xlr.rewarding.pairs import candidates_by_prompt
from xlr.run.artifact import manifest_path
from xlr.run.context import Context
from xlr.run.rows import read_rows
from xlr.training import trackers


def scores(context: Context, iteration: int) -> Iterator[tuple[str, list[Score]]]:
    """The finished scores of an iteration, a language at a time: all at once may take gigabytes."""
    folder = context.run.iteration(iteration) / "scores"
    if manifest_path(folder).is_file():
        for lang in context.config.languages:
            if rows := [row for file in sorted(folder.glob(f"{lang}-*.parquet")) for row in read_rows(file, Score)]:
                yield lang, rows


def length_gaps(context: Context, rows: Sequence[Score]) -> list[float]:
    """|mean length of chosen - mean length of rejected| of a language at every alpha of the grid, in characters."""
    from xlr.maths import lengthcontrol  # imports torch

    section = context.config.pair
    candidates, _ = candidates_by_prompt(rows, section.filters)
    if not candidates:
        return []
    return lengthcontrol.length_gaps(
        [[row.reward for row in group] for group in candidates.values()],
        [[row.num_chars for row in group] for group in candidates.values()],
        math.inf if section.upper_bound is None else section.upper_bound,
    )


def training(folder: Path) -> list[dict[str, Any]]:
    """The metrics of an iteration's training, a row a step."""
    return trackers.whole_rows(folder / "metrics.jsonl")

"""Writes a training's metrics to metrics.jsonl and to the trackers, and reads the file."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlr.errors import UserError
from xlr.terminal.console import console
from xlr.tracking.trackers import TRACKERS


class MetricsLog:
    """Writes one line per step to `metrics.jsonl`, and the same numbers to the trackers.

    `rows` holds all lines: those of finished steps when a training resumes, and those that are written since. Lines of
    steps that are computed again are dropped.

    Args:
        folder: folder of the iteration.
        report_to: names of the trackers.
        name: name of the run in the trackers.
        settings: parameters of the run in the trackers.
        steps_done: number of finished steps.

    Raises:
        UserError: a tracker is not installed.
    """

    def __init__(self, folder: Path, report_to: Sequence[str], name: str, settings: Mapping[str, Any], steps_done: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self.rows = whole_rows(self.path, steps_done)
        if len(self.rows) < steps_done:
            console.print(f"  {self.path}: lacks {steps_done - len(self.rows)} steps; the training curves have a gap")
        self._trackers = [
            TRACKERS[tracker](folder, name, settings, steps_done + 1, not steps_done) for tracker in report_to
        ]
        self._file = self.path.open("a", encoding="utf-8")
        # In place, so that a kill at this moment loses no finished step.
        self._file.truncate(sum(len(_line(row).encode()) for row in self.rows))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one optimizer step."""
        row = {"step": step, **values}
        self.rows.append(row)
        self._file.write(_line(row))
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, values)

    def sync(self) -> None:
        """Wait until all lines are on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write all lines to disk, and close the file and the trackers."""
        self.sync()
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def whole_rows(path: Path, steps_done: int | None = None) -> list[dict[str, Any]]:
    """The lines of the finished steps, by default all lines. A last line cut off by a crash is left out.

    Raises:
        UserError: another line is damaged.
    """
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else [""]
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            known = rows[-1]["step"] if rows else 0
            if row["step"] <= known:
                raise ValueError(f"holds step {row['step']} after step {known}")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(
                f"{path}:{number}: damaged ({error}); remove the line: the file holds the training curves only"
            ) from error
        if steps_done is not None and row["step"] > steps_done:
            break
        rows.append(row)
    return rows

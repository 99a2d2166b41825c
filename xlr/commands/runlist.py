"""`xlr runs`: the runs in a folder, and what each is doing."""

import time
from collections.abc import Sequence
from pathlib import Path

from xlr import configfile, pipeline
from xlr.errors import UserError
from xlr.run.context import Context
from xlr.terminal.console import Table, console, text_columns


def show(folder: Path) -> None:
    """Print a line for each run in a folder and in the folders inside it, the one that changed last first."""
    found = {path.parent for pattern in ("*/config.yaml", "*/*/config.yaml") for path in folder.glob(pattern)}
    show_runs(folder, sorted(found, key=lambda run: -_changed(run)))


def show_runs(folder: Path, runs: Sequence[Path]) -> None:
    """Print a line for each of these runs in a folder."""
    rows = [
        (str(run.relative_to(folder)), *_state(run), time.strftime("%Y-%m-%d %H:%M", time.localtime(_changed(run))))
        for run in runs
    ]
    console.print(Table("", text_columns("run", "stages", "now", "last change"), rows).on_terminal())


def _changed(run: Path) -> float:
    """When something in a run changed last."""
    return max((path.stat().st_mtime for path in (run, *run.glob("*/*"))), default=0.0)


def _state(run: Path) -> tuple[str, str]:
    """How many stages of a run are done, and which are running."""
    try:
        stages = pipeline.status(Context(configfile.load_here(run)))
    except UserError:
        return "", "not valid; xlr status says why"
    states = [stage["state"] for stage in stages]
    unfinished = [
        f"{stage['stage']} {stage['state']}" for stage in stages if stage["state"] in ("running", "interrupted")
    ]
    return f"{states.count('done')} of {len(states)} done", ", ".join(unfinished)

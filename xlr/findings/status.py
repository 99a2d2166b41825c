"""`xlr status` on the terminal: the stages of a run, and its Slurm jobs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.table

from xlr.errors import UserError
from xlr.findings.found import Found
from xlr.findings.stopping import sentences
from xlr.planning.planfile import Plan
from xlr.run import stopped
from xlr.run.context import Context
from xlr.run.files import read_json
from xlr.terminal.console import Table, console, duration, number_columns, size, text_columns
from xlr.terminal.progress import details, headline


def show_status(stages: Sequence[Mapping[str, Any]], planned: Plan | None = None) -> None:
    """Print the state of every stage, and the progress of those that are unfinished.

    Args:
        planned: the plan of the run, whose times and memory stand beside.
    """
    numbers = ("rows", "time", "planned", "memory", "planned") if planned else ("rows", "time", "memory")
    columns = (*text_columns("stage", "state"), *number_columns(*numbers))
    times = {own["stage"]: own["seconds"] for own in planned["stages"]} if planned else {}
    memory = {own["stage"]: sum(own["memory"].values()) for own in planned["stages"]} if planned else {}
    rows = [
        (
            stage["stage"],
            stage["state"],
            str(stage["rows"] or ""),
            "" if stage["seconds"] is None else duration(stage["seconds"]),
            *([duration(times[stage["stage"]]) if times.get(stage["stage"]) else ""] if planned else []),
            size(stage["memory"]) if stage["memory"] else "",
            *([size(int(memory[stage["stage"]])) if memory.get(stage["stage"]) else ""] if planned else []),
        )
        for stage in stages
    ]
    console.print(Table("", columns, rows).on_terminal())
    left = sum(times.get(stage["stage"], 0.0) for stage in stages if stage["state"] != "done")
    if left:
        console.print(f"planned for what is left: {duration(left)}, one stage after the other")
    for stage in stages:
        if stage["progress"]:
            console.print(headline(stage["progress"]))
            for line in details(stage["progress"]):
                console.print(f"  {line}")


def show_advice(run: Path) -> None:
    """Print whether another iteration is worth its cost, as the last report says; nothing without a report."""
    try:
        last: Found = read_json(run / "report.json", Found)
    except UserError:  # there is none, or another version wrote it; `xlr report` writes it again
        return
    for line in sentences(last["advice"]) if last["advice"] else ():
        console.print(line)


def show_end(context: Context) -> None:
    """Print that the run has ended early, and why, if it has."""
    found = stopped.read(context.run.path) if context.config.stop_early else None
    if found is not None and found["iteration"] < context.given.iterations:
        console.print(
            f"stop_early: the run ends with iteration {found['iteration']}; stop_early=false iterations=N goes on"
        )
        for line in found["why"]:
            console.print(f"  {line}")


def show_jobs(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Print the state of every Slurm job, if there are any."""
    if not jobs:
        return
    table = rich.table.Table()
    for column in jobs[0]:
        table.add_column(column, overflow="fold")
    for job in jobs:
        table.add_row(*map(str, job.values()))
    console.print(table)

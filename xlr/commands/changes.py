"""Runs that differ from another one (`xlr fork`), and stages that are made again (`xlr redo`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from xlr import pipeline
from xlr.configfile import dump
from xlr.errors import UserError
from xlr.leases import lease
from xlr.pipeline import Stage
from xlr.run import reuse, sharing
from xlr.run.context import Context
from xlr.run.manifests import read_manifest
from xlr.terminal.console import console, duration


@dataclass(frozen=True)
class Taken:
    """What a new run has of one stage."""

    stage: Stage
    whole: bool
    languages: list[str]
    """The languages that were taken over, where it is not the whole."""
    seconds: float | None
    """How long the other run took for the stage; None if it has not finished it."""


def fork(old: Context, new: Context) -> list[Taken]:
    """Give a new run everything that another has made from the same settings and inputs.

    Called again after it was interrupted, it takes over what is missing.

    Raises:
        UserError: a stage of the old run is running, the new folder holds another run, or a file has changed.
    """
    if new.run.path.resolve() == old.run.path.resolve():
        raise UserError(f"{new.run.path}: is the run itself; name a new folder")
    _require_idle(old, pipeline.stages(old.config), "wait until it ends")
    recorded = new.run.path / "config.yaml"
    if recorded.is_file() and recorded.read_text(encoding="utf-8") != dump(new.given):
        raise UserError(f"{new.run.path}: holds a run with another configuration; name a new folder")
    for name in map(str, new.repositories):
        if name in old.commits:
            new.commits.setdefault(name, old.commits[name])
    plan = pipeline.stages(new.config)
    with pipeline.holding(new, plan):
        return [_taken(old, new, stage) for stage in plan]


def _taken(old: Context, new: Context, stage: Stage) -> Taken:
    target = stage.artifact(new)
    folder = old.run.path / target.folder.relative_to(new.run.path)
    manifest = read_manifest(folder)
    languages = [] if target.manifest() is not None else reuse.take(target, folder)
    done = languages is None or pipeline.done(new, stage)
    return Taken(stage, done, languages or [], manifest["seconds"] if manifest else None)


def _require_idle(context: Context, stages: list[Stage], remedy: str) -> None:
    """Check that no process works on one of these stages.

    Raises:
        UserError: one does.
    """
    titles = {stage.artifact(context).title: stage for stage in stages}
    if found := lease.first_holder(context.run.leases, list(titles)):
        raise UserError(f"{context.run.path}: {titles[found[0]]} is running ({found[1]}); {remedy}")


def show(old: Path, new: Path, taken: list[Taken]) -> None:
    """Print what a new run has, and what is left to be made."""
    table = Table(title=f"{new}: from {old}", title_justify="left")
    for name in ("stage", "", f"time in {old.name}"):
        table.add_column(name, justify="right" if name.startswith("time") else "left")
    left = 0.0
    for own in taken:
        partly = f"taken over: {', '.join(own.languages)}; the rest is made" if own.languages else "is made"
        took = "" if own.seconds is None else duration(own.seconds)
        table.add_row(str(own.stage), "taken over" if own.whole else partly, "" if own.whole else took)
        left += 0.0 if own.whole else own.seconds or 0.0
    console.print(table)
    count = sum(not own.whole for own in taken)
    took = f"; {old.name} took {duration(left)} for them" if left else ""
    console.print(f"{count} of {len(taken)} stages are left{took}")


def followers(context: Context, stage: Stage) -> Iterator[Stage]:
    """The finished stages that read what a stage makes, also through others, in the order of the run."""
    reads, affected = pipeline.needs(context), {stage}
    for other in pipeline.stages(context.config):
        if affected.intersection(reads[other]):
            affected.add(other)
            if read_manifest(other.artifact(context).folder) is not None:
                yield other


def forget(context: Context, stage: Stage) -> None:
    """Let a stage be made again.

    Raises:
        UserError: the stage, or one that reads what it makes, is running; or another run would give it back at once.
    """
    _require_idle(context, [*followers(context, stage), stage], "wait until it ends, or cancel it")
    if other := sharing.source(stage.artifact(context), context.config.reuse):
        raise UserError(
            f"{stage}: {other} has made the same, and this run would take it over again; redo it there, or remove that "
            "run from `reuse` first"
        )
    with pipeline.holding(context, [stage], taking=False):
        stage.artifact(context).forget()

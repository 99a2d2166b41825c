"""The commands that change one thing of a run: `xlr fork`, `xlr redo`, `xlr reuse` and `xlr remove`."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from xlr.commands.stagecommands import (
    ModelOption,
    Overrides,
    Source,
    YesOption,
    confirm,
    model_key,
    open_context,
    require_run,
    require_stage,
)


def add_change_commands(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (fork, redo, reuse, remove):
        app.command()(command)


def fork(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The new run's directory.")],
    overrides: Overrides = None,
) -> None:
    """Make a new run with other settings. It takes over what RUN has from the same settings and inputs."""
    from xlr.commands import changes

    require_run(source)
    old = open_context(source, None)
    forked = open_context(source, [*(overrides or []), f"run_dir={json.dumps(str(new.absolute()))}"])
    changes.show(old.run.path, forked.run.path, changes.fork(old, forked))
    print(f"xlr run {shlex.quote(str(new))}")


def redo(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    stage: Annotated[str, typer.Argument(help="A stage, for example train.")],
    iteration: ModelOption = "1",
    yes: YesOption = False,
) -> None:
    """Make a stage again at the next start. What follows it is made again only if its result differs."""
    from xlr.commands import changes
    from xlr.pipeline import Stage
    from xlr.terminal.console import console

    context = open_context(source, None)
    again = require_stage(context, Stage(stage, model_key(iteration)))
    after = list(changes.followers(context, again))
    console.print(f"{again}: is made again")
    for other in after:
        console.print(f"{other}: is made again if what it reads differs then")
    if not yes:
        confirm(f"xlr redo {source} {stage}")
    changes.forget(context, again)
    print(f"xlr run {shlex.quote(str(context.run.path))}")


def reuse(source: Source, overrides: Overrides = None) -> None:
    """Take over what the runs that the setting `reuse` names have made by now from the same settings and inputs."""
    from xlr import pipeline

    context = open_context(source, overrides)
    with pipeline.holding(context, ()):
        plan = pipeline.stages(context.config)
        print(f"{context.run.path}: {sum(pipeline.done(context, stage) for stage in plan)} of {len(plan)} stages done")


def remove(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    yes: YesOption = False,
) -> None:
    """Remove a run directory, unless it works or an unfinished run beside it needs what it has made."""
    from xlr.sweep import removal
    from xlr.terminal.console import console, size

    require_run(source)
    context = open_context(source, None)
    removal.require_removable(context)
    freed, kept = removal.sizes(context.run.path)
    also = f"; {size(kept)} stay, because other runs share them" if kept else ""
    console.print(f"{context.run.path}: frees {size(freed)}{also}")
    if not yes:
        confirm(f"xlr remove {source}")
    removal.remove(context)

"""Removing a run (`xlr remove`), unless it works or another run still needs what it has made."""

import shutil
from pathlib import Path

from xlr import configfile, pipeline
from xlr.errors import UserError
from xlr.jobs import submission
from xlr.leases import lease
from xlr.run import sharing
from xlr.run.context import Context
from xlr.sweep import shared


def require_removable(context: Context) -> None:
    """Check that a run can be removed.

    Raises:
        UserError: one of its stages or jobs runs, or an unfinished run beside it would take over what it has made.
    """
    run = context.run.path
    titles = [stage.artifact(context).title for stage in pipeline.stages(context.config)]
    if found := lease.first_holder(context.run.leases, titles):
        raise UserError(f"{run}: {found[0]} is being made ({found[1]}); wait until it ends, or cancel it")
    submission.require_idle(context)
    own = set(shared.finished_keys(context))
    for other in sharing.runs_in(run.parent):
        if other != run and (stage := _leaning(other, run, own)):
            raise UserError(
                f"{run}: {other} needs what it has made for {stage}; finish that run, or let it take it over with "
                f"`xlr reuse {other}`"
            )


def _leaning(other: Path, run: Path, finished: set[str]) -> str | None:
    """An unfinished stage of another run that would be taken over from this one, if there is one."""
    try:
        context = Context(configfile.load_here(other))
        places = {found.resolve() for place in context.config.reuse for found in sharing.runs_in(Path(place))}
        if run.resolve() not in places:
            return None
        found = shared.keys(context).items()
        return next((str(stage) for stage, key in found if key in finished and not pipeline.done(context, stage)), None)
    except UserError:  # this version of xlr cannot read or continue that run
        return None


def sizes(run: Path) -> tuple[int, int]:
    """Bytes that removing a run frees, and bytes that stay because other runs share the files."""
    freed = kept = 0
    for path in run.rglob("*"):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            if status.st_nlink == 1:
                freed += status.st_size
            else:
                kept += status.st_size
    return freed, kept


def remove(context: Context) -> None:
    """Remove a run directory. A removal that is interrupted leaves nothing that looks like a run."""
    run = context.run.path.resolve()
    hidden = run.with_name(f".{run.name}.removed")
    if hidden.exists():  # of an interrupted removal
        shutil.rmtree(hidden)
    run.rename(hidden)
    shutil.rmtree(hidden)

"""The commands that run one stage, and what other commands share with them: arguments and the opened run."""

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xlr.errors import UserError
from xlr.stages import StageKind

if TYPE_CHECKING:
    from xlr.pipeline import Stage
    from xlr.run.context import Context

Source = Annotated[str, typer.Argument(metavar="RUN|CONFIG.yaml", help="A run directory, or a configuration file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For example train.beta=0.2.")]
IterationOption = Annotated[int, typer.Option("--iteration", "-i", min=0, help="Number of the iteration, from 1.")]
ModelOption = Annotated[
    str, typer.Option("--iteration", "-i", help="Number of the iteration (0 is pi^0), or a name in evaluate.models.")
]

AcceptOption = Annotated[
    str,
    typer.Option(
        "--accept",
        metavar="version,device",
        help="Continue unfinished stages although versions of libraries, or the kind of device, have changed since.",
    ),
]


YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def confirm(command: str) -> None:
    """Ask whether to go on; end if not.

    Raises:
        UserError: there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise UserError(f"{command}: nobody can be asked here; pass --yes")
    typer.confirm("Go on?", abort=True)


def require_run(source: str) -> None:
    """Check that a run directory is given where a configuration is not enough.

    Raises:
        UserError: there is no such folder.
    """
    if not Path(source).is_dir():
        raise UserError(f"{source}: no such run directory; name one that `xlr run` made")


def open_context(source: str, overrides: list[str] | None) -> "Context":
    """The run that a configuration file or a run directory describes.

    Raises:
        UserError: the configuration is wrong.
    """
    from xlr import configfile
    from xlr.run.context import Context

    return Context(configfile.load_here(source, overrides))


def accepted(text: str) -> list[str]:
    """The kinds of changed conditions in `--accept`.

    Raises:
        UserError: one cannot be accepted.
    """
    from xlr.run.identity import ACCEPTABLE

    kinds = text.split(",") if text else []
    for kind in kinds:
        if kind not in ACCEPTABLE:
            raise UserError(f"--accept {kind}: only changes of {' and '.join(ACCEPTABLE)} can be accepted")
    return kinds


def model_key(text: str) -> int | str:
    """An iteration's number, or a model's name."""
    return int(text) if text.isdecimal() else text


def require_stage(context: "Context", stage: "Stage") -> "Stage":
    """The stage, if the run has it.

    Raises:
        UserError: it has not.
    """
    from xlr import pipeline

    if stage not in pipeline.stages(context.config):
        have = ", ".join(map(str, pipeline.stages(context.config)))
        raise UserError(f"{stage}: not a stage of this run, which has {have}")
    return stage


def run_stages(
    names: Sequence[str], source: str, overrides: list[str] | None, iteration: int | str, accept: str
) -> None:
    """Run stages of one iteration, in workers or in training ranks."""
    from xlr import pipeline
    from xlr.cluster.launcher import ERROR_FILE
    from xlr.cluster.ranks import ranks
    from xlr.findings import earlystop
    from xlr.findings.status import show_end

    context = open_context(source, overrides)
    plan, found = [pipeline.Stage(name, iteration) for name in names], ranks()
    if found is None:  # ranks start after the jobs that annotate, which have settled it
        earlystop.settle(context)
    if _left_out(context, iteration):
        return
    for stage in plan:
        require_stage(context, stage)
    if found is None or not plan[0].kind.in_ranks:
        with pipeline.holding(context, plan, accepted(accept)):
            pipeline.run_all(context, plan, earlystop.ends)
            show_end(context)
        _report_if_done(context)
        return
    from xlr.training import model

    # The launcher holds the leases of the ranks that it started. Otherwise the first rank takes them.
    takes_leases = found.rank == 0 and ERROR_FILE not in os.environ
    context.look_up()
    # The other ranks may read already, so nothing is taken over here; the job did that before.
    held = pipeline.holding(context, plan, accepted(accept), taking=False)
    with held if takes_leases else contextlib.nullcontext():
        model.join(context, int(iteration), found)


def _left_out(context: "Context", iteration: int | str) -> bool:
    """Say that a run has ended before this iteration, if it has. A job that was queued for it then ends well."""
    last = context.config.iterations
    if isinstance(iteration, str) or not last < iteration <= context.given.iterations:
        return False
    print(f"iteration {iteration}: left out, because stop_early ended the run after iteration {last}")
    return True


def _report_if_done(context: "Context") -> None:
    """Write the report if nothing of the run is left to do: of several jobs, the last one does."""
    from xlr import pipeline
    from xlr.report import report

    if all(pipeline.done(context, stage) for stage in pipeline.stages(context.config)):
        report.make([context.config], context.run.path)


def add_stage_command(app: typer.Typer, kind: StageKind) -> None:
    """Add the command that runs one stage of one iteration."""

    def at_start(source: Source, overrides: Overrides = None, accept: AcceptOption = "") -> None:
        run_stages([kind.name], source, overrides, kind.default, accept)

    def at_iteration(
        source: Source,
        overrides: Overrides = None,
        iteration: IterationOption = kind.default,
        accept: AcceptOption = "",
    ) -> None:
        run_stages([kind.name], source, overrides, iteration, accept)

    def at_model(
        source: Source,
        overrides: Overrides = None,
        iteration: ModelOption = str(kind.default),
        accept: AcceptOption = "",
    ) -> None:
        run_stages([kind.name], source, overrides, model_key(iteration), accept)

    command = at_start if kind.only_start else at_model if kind.any_model else at_iteration
    command.__doc__ = kind.help
    app.command(kind.name)(command)

"""`xlr sweep`: several variants of one run."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from xlr.commands.stagecommands import AcceptOption, accepted, open_context
from xlr.errors import UserError
from xlr.foreign.texts import shown

sweep_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Run variants of one configuration: what they share is made once, and one report compares them.",
)

Sweep = Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep's YAML file, or the folder that holds its runs.")]
Site = Annotated[Path | None, typer.Option(help="Site profile to use instead of ~/.config/xlr/site.yaml.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what is shared and what each variant adds.")]


@sweep_app.command()
def run(source: Sweep, dry_run: DryRun = False, accept: AcceptOption = "") -> None:
    """Run every stage of every variant that is not done yet, then show the report."""
    from xlr.jobs import machines
    from xlr.sweep import execution, report, shared
    from xlr.sweep.variants import open_sweep, recorded_runs
    from xlr.terminal.console import console

    kinds, sweep = accepted(accept), open_sweep(source)
    planned = shared.divide(sweep.variants, lambda context: machines.named(context.config, "here"))
    console.print(shared.table(planned).on_terminal())
    console.print(shared.totals(planned))
    if dry_run:
        return
    if failed := execution.run(sweep, kinds):
        raise UserError(f"{sweep.folder}: failed: {', '.join(failed)}; see above, then start the sweep again")
    if sweep.variants[0].context.config.evaluate.prompts:
        report.make(*recorded_runs(sweep.folder))


@sweep_app.command()
def submit(source: Sweep, site: Site = None, dry_run: DryRun = False, accept: AcceptOption = "") -> None:
    """Submit every stage that is not done yet to Slurm as one graph of jobs, in which shared stages stand once."""
    from xlr.sweep import jobs, shared, submission
    from xlr.sweep.variants import open_sweep
    from xlr.terminal.console import console

    kinds, sweep = accepted(accept), open_sweep(source)
    planned = jobs.divide(sweep, site)
    console.print(shared.table(planned).on_terminal())
    console.print(shared.totals(planned))
    if dry_run:
        print(shown(submission.describe(*submission.plan(sweep, planned, site))), end="")
        return
    for name, job in submission.submit(sweep, site, kinds):
        print(shown(f"{job.id}  {name}/{job.name}"))
    print(f"xlr sweep status {shlex.quote(str(sweep.folder))}")


@sweep_app.command()
def status(source: Sweep) -> None:
    """Show how far each variant is, and the Slurm jobs if there are any."""
    from xlr.commands.runlist import show_runs
    from xlr.findings.status import show_jobs
    from xlr.jobs import submission
    from xlr.sweep.variants import recorded_runs

    folder, runs = recorded_runs(source)
    _gather(runs)
    show_runs(folder, runs)
    for directory in runs:
        show_jobs([{"variant": directory.name} | row for row in submission.table(open_context(str(directory), None))])


@sweep_app.command()
def report(source: Sweep) -> None:
    """Compare the variants with the base, and write report.html and report.md into the sweep's folder."""
    from xlr.sweep import report as comparison
    from xlr.sweep.variants import recorded_runs

    folder, runs = recorded_runs(source)
    _gather(runs)
    comparison.make(folder, runs)


def _gather(runs: list[Path]) -> None:
    """Let variants take over what others have made since their own last job, or if they have no job at all."""
    from xlr import pipeline
    from xlr.terminal.console import console

    for directory in runs:
        try:
            with pipeline.holding(open_context(str(directory), None), ()):
                pass
        except UserError as error:  # its state is shown all the same
            console.print(f"{directory.name}: {error}")


@sweep_app.command()
def cancel(source: Sweep) -> None:
    """Cancel the Slurm jobs of all variants. Finished work is kept."""
    from xlr.jobs import submission
    from xlr.sweep.variants import recorded_runs

    for directory in recorded_runs(source)[1]:
        for job in submission.cancel(open_context(str(directory), None)):
            print(shown(f"{job.id}  {directory.name}/{job.name}: cancelled"))

"""The commands that show what there is: data, runs, their state, reports, rows."""

import io
import json
import sys
import time
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from xlr.commands.plancommand import plan
from xlr.commands.stagecommands import IterationOption, Overrides, Source, model_key, open_context
from xlr.errors import UserError
from xlr.languages import ENGLISH

_EXPORTED_ROWS = 1024  # in memory at a time
_WATCH_SECONDS = 5


def add_view_commands(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (data, plan, verify, status, runs, recipes, export):
        app.command()(command)
    app.command("report")(report_command)
    app.command("try")(try_command)


def data(source: Source, overrides: Overrides = None) -> None:
    """Show what xlr reads of prompts and preferences, and the first of each language as the model sees it."""
    from xlr.commands import datacheck

    context = open_context(source, overrides)
    datacheck.show(list(datacheck.check(context)), [*datacheck.unread(context), *datacheck.undetected(context.config)])


def verify(source: Source) -> None:
    """Read every file of a run again, compare it with its manifest, and say what each fault means."""
    from xlr.commands import verify as verification
    from xlr.terminal.console import console

    context, found = open_context(source, None), 0
    for place, fault in verification.faults(context):
        console.print(f"{place}: {fault}")
        found += 1
    if found:
        raise UserError(f"{context.run.path}: {found} faults; see above what each means")
    console.print(f"{context.run.path}: no faults")


def status(
    source: Source,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it every few seconds, until Ctrl-C.")] = False,
) -> None:
    """Show the state, rows and time of every stage, and the Slurm jobs if there are any."""
    from xlr import pipeline
    from xlr.findings.status import show_advice, show_end, show_jobs, show_status
    from xlr.jobs import submission
    from xlr.planning import planfile
    from xlr.terminal.console import console

    context = open_context(source, None)
    while True:
        if watch:
            console.clear()
        show_status(pipeline.status(context), planfile.read(context.run.path))
        show_advice(context.run.path)
        show_end(context)
        show_jobs(submission.table(context))
        if not watch:
            return
        time.sleep(_WATCH_SECONDS)


def runs(
    folder: Annotated[Path, typer.Argument(help="A folder of run directories.")] = Path("runs"),
) -> None:
    """List the runs in a folder: what is done, what runs, when something changed last."""
    from xlr.commands.runlist import show

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the one that holds your run directories")
    show(folder)


def recipes() -> None:
    """List the shipped recipes, which `xlr init NAME --recipe RECIPE` copies."""
    from xlr import shipped

    for name in shipped.recipes():
        print(f"{name}: {shipped.purpose(name)}")


def report_command(
    sources: Annotated[list[str], typer.Argument(metavar="RUN", help="Run directories.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html and report.md; by default the first run.")
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    tables: Annotated[bool, typer.Option("--tables", help="Also print the tables of report.md.")] = False,
    to: Annotated[str | None, typer.Option(help="Also send the numbers to trackers: tensorboard,wandb,mlflow.")] = None,
) -> None:
    """Show the results of runs so far, side by side, and write report.html, report.md and RUN/report.json."""
    from xlr.findings import publish as figures
    from xlr.report import report

    trackers = figures.known_trackers(to.split(",") if to else [])
    contexts = [open_context(source, None) for source in sources]
    report.make([context.config for context in contexts], out or contexts[0].run.path, tables)
    for context in contexts:
        figures.publish(context.run.path, trackers)
    if browser:
        webbrowser.open(((out or contexts[0].run.path) / "report.html").absolute().as_uri())


def export(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    artefact: Annotated[str, typer.Argument(help="responses, translations, scores or pairs.")],
    iteration: IterationOption = 1,
) -> None:
    """Print the rows of an artefact as JSON, one object a line."""
    from xlr.run.manifests import parquet_files

    exported = ("responses", "translations", "scores", "pairs")
    if artefact not in exported:
        raise UserError(f"{artefact}: not an artefact with rows; choose one of {', '.join(exported)}")
    import pyarrow.parquet as pq

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # in any locale
    for path in parquet_files(open_context(source, None).run.iteration(iteration) / artefact):
        for batch in pq.ParquetFile(path).iter_batches(_EXPORTED_ROWS):
            for row in batch.to_pylist():
                print(json.dumps(row, ensure_ascii=False))


def try_command(
    source: Source,
    instruction: Annotated[str, typer.Argument(help="What the models are asked, in any language.")],
    models: Annotated[
        str,
        typer.Option(
            help="Models to ask: iterations (0 is pi^0) or names in evaluate.models; by default 0 and the last."
        ),
    ] = "",
    lang: Annotated[
        str, typer.Option(help="Language of the instruction, where model.system_prompt has a text for each.")
    ] = ENGLISH,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    page: Annotated[
        Path | None, typer.Option("--html", help="Also write the answers side by side to this file.")
    ] = None,
) -> None:
    """Ask models of a run one thing. Colours say which tokens the reward likes, green, and which it does not, red."""
    from xlr.commands import tryout
    from xlr.run.manifests import manifest_path

    context = open_context(source, None)
    iterations = context.config.trained_iterations
    trained = [t for t in iterations if manifest_path(context.run.iteration(t) / "model").is_file()]
    asked = [model_key(name) for name in models.split(",")] if models else [0, *trained[-1:]]
    unknown = [str(model) for model in asked if model not in context.config.models]
    if unknown:
        have = ", ".join(map(str, context.config.models))
        raise UserError(f"--models {unknown[0]}: not a model of this run, which has {have}")
    answers = tryout.answer(context, instruction, lang, asked, seed)
    if page:
        tryout.write_page(page, instruction, answers)

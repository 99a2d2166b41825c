"""The `xlr` command. Imports what a command needs when it runs: `xlr --help` loads no torch."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xlr.errors import UserError

if TYPE_CHECKING:
    from xlr.stage import Context

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Align a language model in languages without preference data (Implicit Cross-Lingual Rewarding).",
)

Source = Annotated[str, typer.Argument(metavar="RUN|CONFIG.yaml", help="A run directory, or a configuration file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For example train.beta=0.2.")]
Iteration = Annotated[int, typer.Option("--iteration", "-i", min=0, help="Which iteration, from 1.")]


def _context(source: str, overrides: list[str] | None) -> "Context":
    from xlr import config
    from xlr.stage import Context

    return Context(config.load(source, overrides))


def _run_stage(name: str, source: str, overrides: list[str] | None, iteration: int) -> None:
    from xlr import launch, pipeline

    context = _context(source, overrides)
    stage = pipeline.Stage(name, iteration)
    if stage not in pipeline.stages(context.config):
        have = ", ".join(map(str, pipeline.stages(context.config)))
        raise UserError(f"{stage}: not a stage of this run, which has {have}")
    ranks = launch.ranks()
    if ranks is not None and name in ("align", "train"):
        from xlr import training

        # Ranks of our own launcher work under its lock; others' first rank takes it.
        alone = ranks.rank == 0 and launch.ERROR_FILE not in os.environ
        if alone:
            context.run.create()
        with context.run.lock() if alone else contextlib.nullcontext():
            training.join(context, iteration, ranks)
        return
    context.run.create()
    with context.run.lock():
        pipeline.prepare(context)
        try:
            pipeline.execute(context, stage)
        finally:
            context.close()


@app.command()
def run(source: Source, overrides: Overrides = None) -> None:
    """Run every stage that is not done yet, then show the report."""
    from xlr import pipeline, report

    context = _context(source, overrides)
    context.run.create()
    with context.run.lock():
        pipeline.prepare(context)
        pipeline.run_all(context)
        report.show(context)


@app.command()
def align(source: Source, overrides: Overrides = None) -> None:
    """Stage 0: make the English-aligned model from the initial one, with English preferences."""
    _run_stage("align", source, overrides, 0)


@app.command()
def generate(source: Source, overrides: Overrides = None, iteration: Iteration = 1) -> None:
    """Stage 1: sample responses in every language."""
    _run_stage("generate", source, overrides, iteration)


@app.command()
def score(source: Source, overrides: Overrides = None, iteration: Iteration = 1) -> None:
    """Stage 2: score the responses with the implicit reward."""
    _run_stage("score", source, overrides, iteration)


@app.command()
def pair(source: Source, overrides: Overrides = None, iteration: Iteration = 1) -> None:
    """Stage 3: turn scores into preference pairs."""
    _run_stage("pair", source, overrides, iteration)


@app.command()
def reference(source: Source, overrides: Overrides = None, iteration: Iteration = 1) -> None:
    """Before training with reference_mode cached: the reference's log-probabilities of all pairs."""
    _run_stage("reference", source, overrides, iteration)


@app.command()
def train(source: Source, overrides: Overrides = None, iteration: Iteration = 1) -> None:
    """Stage 4: fine-tune on the pairs; starts its own processes unless a launcher or srun did."""
    _run_stage("train", source, overrides, iteration)


@app.command()
def evaluate(source: Source, overrides: Overrides = None, iteration: Iteration = 0) -> None:
    """Stage 5: evaluate the model of an iteration (0 is the start) on held-out prompts and preferences."""
    _run_stage("evaluate", source, overrides, iteration)


@app.command()
def status(source: Source) -> None:
    """Show every stage of every iteration: done, running, waiting, rows, time."""
    from xlr import pipeline, report

    report.show_status(pipeline.status(_context(source, None)))


@app.command("report")
def report_command(source: Source) -> None:
    """Show what the run achieved so far and write RUN/report.json."""
    from xlr import report

    report.show(_context(source, None))


@app.command()
def config(
    source: Annotated[str | None, typer.Argument(metavar="RUN|CONFIG.yaml")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema, for editors.")] = False,
) -> None:
    """Print the resolved configuration, every default spelled out."""
    from xlr import config as configuration

    if schema:
        print(json.dumps(configuration.Config.model_json_schema(), indent=2, allow_nan=False))
    elif source is None:
        raise UserError("xlr config: name a run directory or a configuration file, or pass --schema")
    else:
        print(configuration.dump(configuration.load(source, overrides)), end="")


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The configuration to write: NAME.yaml.")],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="The recipe to start from.")] = "quickstart",
) -> None:
    """Start a configuration from a recipe."""
    from xlr.config import RECIPES

    recipes = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if recipe not in recipes:
        raise UserError(f"--recipe {recipe}: no such recipe; there are {', '.join(recipes)}")
    target = Path(name).with_suffix(".yaml")
    if target.exists():
        raise UserError(f"{target}: exists already; choose another name or remove it")
    try:
        target.write_text((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from error
    print(f"{target}: written. Edit it, then: xlr run {target}")


def main() -> None:
    """Entry point: bad input ends with one message and exit code 2, SIGTERM and SIGUSR1 with exit code 75 after
    saving, a failure of ours with a traceback and exit code 1."""
    from xlr.launch import ERROR_FILE
    from xlr.preemption import EXIT_CODE, Preempted, end_on_signals

    end_on_signals()

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a report in a C locale is better with ? than not at all
    try:
        app()
    except Preempted as ended:
        print(ended, file=sys.stderr)
        sys.exit(EXIT_CODE)
    except UserError as error:
        if ERROR_FILE in os.environ:
            Path(os.environ[ERROR_FILE]).write_text(str(error), encoding="utf-8")
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

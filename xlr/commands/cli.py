"""The `xlr` command. A command imports what it needs when it runs, so that `xlr --help` loads no torch."""

import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

import xlr
from xlr.certificate.extent import PROMPTS, SAMPLES, Extent
from xlr.commands.changecommands import add_change_commands
from xlr.commands.stagecommands import (
    AcceptOption,
    IterationOption,
    ModelOption,
    Overrides,
    Source,
    YesOption,
    accepted,
    add_stage_command,
    model_key,
    open_context,
    run_stages,
)
from xlr.commands.sweepcommands import sweep_app
from xlr.commands.viewcommands import add_view_commands
from xlr.errors import UserError
from xlr.foreign.texts import shown
from xlr.languages import canonical
from xlr.stages import STAGES


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"xlr {xlr.__version__}")
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help takes half the time
)


@app.callback()
def every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Align a language model in languages without preference data (Implicit Cross-Lingual Rewarding)."""


@app.command()
def run(
    source: Source,
    overrides: Overrides = None,
    only: Annotated[
        str | None, typer.Option("--stages", help="Only these stages of one iteration: generate,score.")
    ] = None,
    iteration: ModelOption = "1",
    accept: AcceptOption = "",
) -> None:
    """Run every stage that is not done yet, then show the report."""
    from xlr import pipeline
    from xlr.findings import earlystop
    from xlr.findings.status import show_end
    from xlr.report import report

    if only is not None:
        run_stages(only.split(","), source, overrides, model_key(iteration), accept)
        return
    context = open_context(source, overrides)
    plan = pipeline.stages(context.config)
    with pipeline.holding(context, plan, accepted(accept)):
        if not all(pipeline.done(context, stage) for stage in plan):
            pipeline.check(context)
        pipeline.run_all(context, plan, earlystop.ends)
        show_end(context)
        report.make([context.config], context.run.path)
    print(f'ask the models yourself: xlr try {shlex.quote(str(context.run.path))} "..."')


for _kind in STAGES:
    add_stage_command(app, _kind)
add_change_commands(app)
add_view_commands(app)
app.add_typer(sweep_app, name="sweep")


@app.command()
def certify(
    source: Source,
    overrides: Overrides = None,
    iteration: IterationOption = 1,
    prompts: Annotated[
        int, typer.Option(min=1, help="Number of prompts, which are the same in every language.")
    ] = PROMPTS,
    samples: Annotated[int, typer.Option(min=2, help="Responses to each prompt.")] = SAMPLES,
    languages: Annotated[str | None, typer.Option(help="Only these languages of the run, for example es,ru.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Prompts of each language that are shown with responses.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with uncut texts.")] = False,
) -> None:
    """Say for each language whether its reward may be trusted, from a few samples, before anything dear is computed."""
    from xlr import pipeline
    from xlr.certificate import certificate, certificateview
    from xlr.terminal.console import console

    context = open_context(source, overrides)
    console.stderr = as_json
    langs = context.config.trained_languages if languages is None else list(map(canonical, languages.split(",")))
    extent = Extent(iteration, prompts, samples, langs)
    certificate.require_valid(context.config, extent)
    with pipeline.holding(context, ()):
        found = certificate.certify(context, extent)
    if as_json:
        print(shown(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)))
    else:
        certificateview.show(found, show)


@app.command()
def fetch(source: Source, overrides: Overrides = None) -> None:
    """Download the models and datasets that a run needs from the hub, for nodes without network, and say their size."""
    from xlr.commands.fetch import fetch as download

    download(open_context(source, overrides))


@app.command()
def push(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Its name on the hub: owner/name.")],
    iteration: Annotated[
        int | None,
        typer.Option("--iteration", "-i", min=0, help="Number of the iteration; by default the last that is finished."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public. One that exists stays as it is.")
    ] = False,
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="The branch, which is made if it is new.")] = "main",
    yes: YesOption = False,
) -> None:
    """Upload the model of an iteration to the hub as one commit. A new repository is private."""
    from xlr.commands.push import push as upload

    upload(source, repository, iteration, revision, public, yes)


Site = Annotated[Path | None, typer.Option(help="Site profile to use instead of ~/.config/xlr/site.yaml.")]


@app.command()
def submit(
    source: Source,
    overrides: Overrides = None,
    site: Site = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print jobs and scripts; needs no Slurm.")] = False,
    accept: AcceptOption = "",
) -> None:
    """Submit every stage that is not done yet as a chain of Slurm jobs, and show what they ask for."""
    from xlr.jobs import submission

    context = open_context(source, overrides)
    if dry_run:
        print(shown(submission.describe(context, site)), end="")
        return
    found = submission.submit(context, site, accepted(accept))
    for job, state in submission.states(context) if found else ():
        start = f"  expected to start at {state.start.replace('T', ' ')}" if state and state.start else ""
        print(shown(f"{job.id}  {job.name}{start}"))
    print(f"xlr status {shlex.quote(str(context.run.path))}" if found else f"{context.run.path}: every stage is done")


@app.command()
def cancel(source: Source) -> None:
    """Cancel the Slurm jobs of a run. Finished work is kept."""
    from xlr.jobs import submission

    context = open_context(source, None)
    for job in submission.cancel(context):
        print(shown(f"{job.id}  {job.name}: cancelled"))


@app.command()
def logs(
    source: Source,
    stage: Annotated[str, typer.Argument(help="A stage, for example train.")],
    iteration: ModelOption = "1",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new output.")] = False,
) -> None:
    """Show the output of a stage, with control characters written out."""
    from xlr.commands import outputs
    from xlr.jobs import submission
    from xlr.pipeline import Stage

    log = submission.log(open_context(source, None), Stage(stage, model_key(iteration)))
    outputs.show(log, follow)


@app.command()
def doctor(
    source: Source,
    overrides: Overrides = None,
    site: Site = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also run `xlr selftest` on a node, in the same job.")] = False,
    on_node: Annotated[bool, typer.Option("--on-node", hidden=True)] = False,
    ray: Annotated[bool, typer.Option("--ray", hidden=True)] = False,
) -> None:
    """Check that a run can work on this Slurm cluster, first on this machine, then on the nodes in a short job."""
    from xlr.jobs import doctor as examination
    from xlr.selftest.check import show_all

    context = open_context(source, overrides)
    if on_node:
        examination.on_node(context)
    elif ray:
        examination.with_ray(context)
    else:
        show_all(examination.examine(context, site, deep))


@app.command()
def selftest(
    folder: Annotated[Path, typer.Argument(help="A new folder, on the file system that runs will use.")],
    shape: Annotated[
        str | None, typer.Option(help="The model's shape: tiny, 1b or 8b. By default 1b on GPUs and tiny on CPUs.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Training processes; by default one per GPU.")] = None,
    meet: Annotated[bool, typer.Option("--meet", hidden=True)] = False,
) -> None:
    """Prove what this machine computes, how fast and how repeatably, with a model of random weights."""
    from xlr.selftest import selftest as test
    from xlr.selftest.check import show_all
    from xlr.selftest.material import SHAPES, usual_shape

    if meet:
        test.meet(folder)
        return
    chosen = shape or usual_shape()
    if chosen not in SHAPES:
        raise UserError(f"--shape {chosen}: not a shape; choose one of {', '.join(SHAPES)}")
    show_all(test.examine(folder.absolute(), chosen, processes))


@app.command("winrate")
def winrate_command(
    annotations: Annotated[
        Path, typer.Argument(metavar="ANNOTATIONS", help="Judgements in AlpacaEval's format: a JSON file, or a folder.")
    ],
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="Judgements of the same instructions, to compare with.")
    ] = None,
    difficulty: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DATASET",
            help="Table for length_controlled_v1, which replaces length_controlled_minimal: AlpacaEval's df_gamed.csv, "
            "or tatsu-lab/alpaca_eval from the hub.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Win rate and length-controlled win rate of generator_2. With two files, also the second minus the first."""
    from xlr.evaluation import annotations as files
    from xlr.evaluation import winrates
    from xlr.evaluation.difficulty import load

    found = winrates.measure(
        files.read(annotations),
        files.read(other) if other else None,
        load(difficulty),
    )
    if as_json:
        print(shown(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)))
    else:
        winrates.show(found)


@app.command()
def config(
    source: Annotated[
        str | None, typer.Argument(metavar="RUN|CONFIG.yaml", help="A run directory, or a configuration file.")
    ] = None,
    overrides: Overrides = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of configuration files instead, for editors.")
    ] = False,
) -> None:
    """Print the resolved configuration: absolute paths, every default, no `extends`."""
    from xlr import configfile

    if schema:
        print(json.dumps(configfile.schema(), indent=2, allow_nan=False))
    elif source is None:
        raise UserError("xlr config: no configuration given; name a run directory or a file, or pass --schema")
    else:
        print(configfile.dump(configfile.load(source, overrides)), end="")


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the new file, NAME.yaml.")],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Shipped recipe to copy.")] = "quickstart",
) -> None:
    """Create a configuration file from a recipe."""
    from xlr.shipped import RECIPES, SWEEPS, recipes

    if recipe not in recipes():
        raise UserError(f"--recipe {recipe}: no such recipe; choose one of {', '.join(recipes())}")
    target = Path(name if name.endswith(".yaml") else f"{name}.yaml")
    if target.exists():
        raise UserError(f"{target}: exists already; choose another name or remove it")
    try:
        target.write_text((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from error
    uses = {"site": f"xlr submit --site {target}, or move it to ~/.config/xlr"}
    uses |= dict.fromkeys(SWEEPS, f"xlr sweep run {target} --dry-run")
    print(f"{target}: written. Edit it, then: {uses.get(recipe, f'xlr run {target}')}")


def _require_no_dashes(arguments: list[str]) -> None:
    """Check that no override is written like an option.

    Raises:
        UserError: one is.
    """
    for argument in arguments:
        if re.match(r"--[a-z_]+\.[a-z_.]+(=|$)", argument):
            raise UserError(f"{argument}: a setting is written without dashes: {argument[2:].partition('=')[0]}=VALUE")


def main() -> None:
    """Run the command line.

    Exit code 2 is bad input, with one message. Exit code 75 is SIGTERM or SIGUSR1, after saving. Exit code 1 is any
    other failure, with a traceback. Only this user can read what the process and its child processes write.
    """
    from xlr.cluster.launcher import ERROR_FILE, end_with_launcher
    from xlr.cluster.preemption import EXIT_CODE, Preempted, end_on_signals, said

    os.umask(0o077)
    end_on_signals()
    end_with_launcher()

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # in a C locale, print ? instead of failing
    try:
        _require_no_dashes(sys.argv[1:])
        app()
    except BaseException as error:
        if message := said(error):
            print(shown(message), file=sys.stderr)
            sys.exit(error.code if isinstance(error, Preempted) else EXIT_CODE)
        if not isinstance(error, UserError):
            raise
        if ERROR_FILE in os.environ:
            Path(os.environ[ERROR_FILE]).write_text(shown(str(error)), encoding="utf-8")
        print(f"error: {shown(str(error))}", file=sys.stderr)
        sys.exit(2)

"""`xlr plan`: what a run takes, before anything is computed."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from xlr.commands.stagecommands import Overrides, Source, open_context
from xlr.errors import UserError
from xlr.terminal.console import console, duration, size

if TYPE_CHECKING:
    from xlr.planning.planfile import Plan, StagePlan
    from xlr.settings.config import Config

_BAR = 20  # characters

On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="KIND[:GPUS[:NODES]]",
        help="Plan for these machines, such as h100:8:2, in place of those of the Slurm settings. here is this one.",
    ),
]


def plan(
    source: Source,
    overrides: Overrides = None,
    on: On = None,
    site: Annotated[
        Path | None, typer.Option(help="Site profile; by default ~/.config/xlr/site.yaml if it exists.")
    ] = None,
    response_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean tokens of a response in English, where nothing was sampled.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="First run a small part of each stage on this machine, and correct times by it."),
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option(help="Write the configuration with the fastest settings that fit, and with time limits."),
    ] = None,
) -> None:
    """Say what a run takes: memory, time, disk, GPU-hours, price. Needs no GPU, no Slurm and no weights."""
    from xlr.jobs import graph, machines, submission
    from xlr.planning import choose, planfile
    from xlr.planning import plan as planning
    from xlr.planning import probe as probing
    from xlr.planning.fits import changed, overridden
    from xlr.planning.hardware import HERE
    from xlr.planning.planner import Planner
    from xlr.run.context import Context

    if probe and on:
        raise UserError("--probe: runs on this machine; remove --on, and probe where the run will be")
    context = open_context(source, overrides)
    slurm = submission.settings(context, site)
    used = machines.named(context.config, on) if on else machines.of_jobs(context.config, slurm)
    console.stderr = as_json
    probed = None
    if probe:
        with _printing_to_errors() if as_json else contextlib.nullcontext():
            probed = probing.run(context, machines.named(context.config, HERE))
    planner = Planner(context, used, response_tokens, probed)
    limit_of = (lambda _: None) if on else machines.limits(slurm)
    found = planning.make(planner, limit_of, ran_there=on is None)
    if probe or (context.run.path.is_dir() and on is None and not overrides):
        planfile.write(context.run.path, found)
    chosen = choose.settings(planner)
    if as_json:
        print(json.dumps({**found, "settings": chosen}, indent=2, ensure_ascii=False))
    else:
        show(found)
        if chosen:
            console.print(f"Fastest settings that fit: {' '.join(changed(context.config, chosen))}")
    if write:
        planned = Context(overridden(context.config, chosen))
        plans = planning.make(Planner(planned, used, response_tokens, probed), limit_of, on is None)["stages"]
        _write(write, planned.config, choose.limits(plans, graph.kinds_of_stages(slurm).__getitem__))
        print(f"{write}: written", file=sys.stderr)


@contextlib.contextmanager
def _printing_to_errors() -> Iterator[None]:
    """Let this process and those that it starts print to stderr, where they would print to stdout."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def _write(path: Path, config: "Config", limits: Mapping[str, str]) -> None:
    """Write a configuration with time limits, and with every default.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    from xlr import configfile
    from xlr.planning import choose

    if path.exists():
        raise UserError(f"--write {path}: exists already; choose another name or remove it")
    try:
        path.write_text(configfile.dump(choose.with_limits(config, limits)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--write {path}: cannot be written ({error.strerror})") from error


def show(found: "Plan") -> None:
    """Print the plan as tables, with memory as bars."""
    console.print(f"{found['model']}: {found['parameters'] / 1e9:.3g} billion parameters")
    lengths = Table(title="tokens", title_justify="left")
    for name in ("language", "prompts", "of a prompt", "of what it is scored under", "of a response"):
        lengths.add_column(name, justify="left" if name == "language" else "right")
    for lang, own in found["languages"].items():
        lengths.add_row(lang, f"{own['prompts']:,.0f}", *(f"{own[key]:.0f}" for key in ("prompt", "asked", "response")))
    console.print(lengths)
    console.print(f"Lengths of responses: {found['response_lengths']}.")
    console.print(_stages(found))
    for stage in _of_each_kind(found["stages"]):
        console.print(_memory(stage))
    for line in _totals(found):
        console.print(line)
    for problem in found["problems"]:
        console.print(f"[bold]does not fit[/bold] {problem}", highlight=False)


def _stages(found: "Plan") -> Table:
    priced = found["totals"]["price"] is not None
    table = Table(title="stages", title_justify="left")
    for name in ("stage", "on", "tokens", "time", "from", "to", "memory of a process", "disk"):
        table.add_column(name, justify="left" if name in ("stage", "on", "memory of a process") else "right")
    if priced:
        table.add_column(str(found["currency"]), justify="right")
    for own in found["stages"]:
        times = [duration(own[key]) for key in ("seconds", "low", "high")]
        if own["took"] is not None:
            times = [f"{times[0]}, took {duration(own['took'])}", "", ""]
        if not own["seconds"]:
            times = ["-", "", ""]
        cells = [own["stage"], own["processors"], f"{own['tokens']:,.0f}" if own["tokens"] else "", *times]
        table.add_row(*cells, _bar(own), size(int(own["disk"])), *([f"{own['price']:,.2f}"] if priced else []))
    return table


def _bar(own: "StagePlan") -> str:
    """How much of a processor's memory a process takes."""
    needed = sum(own["memory"].values())
    if not needed:
        return ""
    filled = min(round(_BAR * needed / own["room"]), _BAR)
    return f"{'█' * filled}{'░' * (_BAR - filled)} {needed / 1e9:.1f} of {own['room'] / 1e9:.0f} GB"


def _of_each_kind(stages: "list[StagePlan]") -> "Iterator[StagePlan]":
    """The first stages whose memory has several parts, each with other parts than those before."""
    seen = set()
    for own in stages:
        parts = frozenset(own["memory"].items())
        if len(parts) > 1 and parts not in seen:
            seen.add(parts)
            yield own


def _memory(own: "StagePlan") -> Table:
    table = Table(title=f"memory of a process in {own['stage']}, GB", title_justify="left", show_header=False)
    largest = max(own["memory"].values())
    for name, needed in own["memory"].items():
        if needed:
            table.add_row(name, f"{needed / 1e9:.2f}", "█" * round(_BAR * needed / largest))
    return table


def _totals(found: "Plan") -> Iterator[str]:
    own = found["totals"]
    yield (
        f"One stage after the other: {duration(own['seconds'])} (from {duration(own['low'])} to "
        f"{duration(own['high'])}), {own['processor_hours']:,.1f} {found['unit']}; queues come on top."
    )
    yield f"Disk: {size(int(own['disk_end']))} in the end, {size(int(own['disk_peak']))} at the peak."
    if own["price"] is not None:
        yield f"Price: {own['price']:,.2f} {found['currency']}."
    if certificate := found.get("certificate"):
        took, fixed = duration(certificate["seconds"]), duration(certificate["fixed"])
        yield (
            f"`xlr certify` before it takes about {took}: {fixed} to start workers and open models; the rest is "
            f"{100 * certificate['share']:.1f} % of an iteration."
        )
    for stage in found["stages"]:
        if stage["note"]:
            yield f"{stage['stage']}: {stage['note']}."

"""Submits a sweep to Slurm: everything is checked before the first job is queued."""

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path

from xlr import pipeline
from xlr.cluster import slurm as scheduler
from xlr.jobs import submission
from xlr.jobs.submission import Submitted
from xlr.sweep import arrays, jobs
from xlr.sweep.arrays import Group, Sender
from xlr.sweep.jobs import Node
from xlr.sweep.shared import Planned
from xlr.sweep.variants import Sweep
from xlr.terminal.console import console


def plan(sweep: Sweep, planned: Sequence[Planned], site: Path | None) -> tuple[list[Node], list[Group]]:
    """The jobs of a sweep, and the groups in which they are submitted.

    Args:
        planned: which variant makes what; see `jobs.divide`.
        site: the site profile in place of the usual one.

    Raises:
        UserError: the site profile or the kinds of jobs are not valid.
    """
    own = sweep.settings
    nodes = jobs.plan(planned, site, None if own.array else own.at_once)
    return nodes, arrays.groups(nodes, own.array)


def describe(nodes: list[Node], groups: list[Group]) -> str:
    """The jobs and what each waits for, then the arrays."""
    return jobs.describe(nodes) + arrays.describe(groups)


def submit(sweep: Sweep, site: Path | None, accept: Collection[str] = ()) -> list[tuple[str, Submitted]]:
    """Submit the jobs of all variants.

    Args:
        accept: kinds of changed conditions under which unfinished pieces may be continued; see `identity`.

    Returns:
        Each job with the name of its variant.

    Raises:
        UserError: jobs of the sweep are queued or running, a variant has bad input, or Slurm refuses a job.
    """
    scheduler.require()
    sweep.record()
    for variant in sweep.variants:
        submission.require_idle(variant.context)
    with contextlib.ExitStack() as held:
        for variant in sweep.variants:
            stages = pipeline.stages(variant.context.config)
            held.enter_context(pipeline.holding(variant.context, stages, accept))
        nodes, groups = plan(sweep, jobs.divide(sweep, site, taken_over=True), site)
        console.print(describe(nodes, groups))
        for name in dict.fromkeys(node.key[0] for node in nodes):
            own = [node for node in nodes if node.key[0] == name]
            submission.prepare(own[0].variant.variant.context, own[0].slurm, [node.job for node in own])
        numbers = {variant.name: number for number, variant in enumerate(sweep.variants)}
        return list(Sender(numbers, sweep.folder, sweep.settings.at_once).send(groups))

"""A sweep on Slurm: one graph of jobs over all variants, in which a shared stage stands once."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xlr import pipeline
from xlr.cluster import slurm as scheduler
from xlr.errors import UserError
from xlr.jobs import graph as jobs
from xlr.jobs import machines, submission
from xlr.jobs.graph import Job
from xlr.jobs.submission import Submitted
from xlr.pipeline import Stage
from xlr.settings.slurmconfig import SlurmConfig
from xlr.sweep import shared
from xlr.sweep.shared import Planned
from xlr.sweep.variants import Sweep
from xlr.terminal.console import console


@dataclass(frozen=True)
class Node:
    """A job of one variant, in the graph of the sweep."""

    variant: Planned
    slurm: SlurmConfig
    job: Job
    after: tuple[tuple[str, str], ...]
    """Variant and job, for each that must succeed first."""
    after_end_of: tuple[str, str] | None
    """Variant and job that must end first, however it ends."""

    @property
    def key(self) -> tuple[str, str]:
        """Its variant and its job."""
        return self.variant.variant.name, self.job.name


@dataclass
class _Lanes:
    """Jobs that run one after the other in as many lanes as jobs may run at a time."""

    ends: list[float]
    last: list[tuple[str, str] | None]
    finished: dict[tuple[str, str], float] = field(default_factory=dict)

    def place(self, key: tuple[str, str], after: Collection[tuple[str, str]], seconds: float) -> tuple[str, str] | None:
        """Put a job into the lane that is free first; the job before it there, which must end first."""
        lane = min(range(len(self.ends)), key=self.ends.__getitem__)
        begins = max(self.ends[lane], *(self.finished[other] for other in after), 0.0)
        before, self.last[lane] = self.last[lane], key
        self.ends[lane] = self.finished[key] = begins + seconds
        return before


def plan(planned: Sequence[Planned], site: Path | None, at_once: int | None) -> list[Node]:
    """The jobs of all variants, each after those it waits for.

    Args:
        site: the site profile in place of the usual one.
        at_once: number of jobs that may run at the same time.

    Raises:
        UserError: the site profile or the kinds of jobs are not valid.
    """
    nodes: list[Node] = []
    of_stage: dict[tuple[str, Stage], tuple[str, str]] = {}
    lanes = _Lanes([0.0] * at_once, [None] * at_once) if at_once else None
    for one in planned:
        slurm, name = submission.timed(one.variant.context, site), one.variant.name
        for job in jobs.plan({stage: one.needs[stage] for stage in one.own}, slurm):
            needed = (need for stage in job.stages for need in one.needs[stage] if need in one.makers)
            after = tuple(dict.fromkeys(of_stage[one.makers[need], need] for need in needed if need not in job.stages))
            limit = scheduler.limit_seconds(jobs.wants(slurm, job.kind).time or "") or 1.0
            key = (name, job.name)
            nodes.append(Node(one, slurm, job, after, lanes.place(key, after, limit) if lanes else None))
            of_stage |= dict.fromkeys(((name, stage) for stage in job.stages), key)
    return nodes


def divide(sweep: Sweep, site: Path | None, taken_over: bool = False) -> list[Planned]:
    """Which variant makes which stage, with times on the machines of the jobs; see `shared.divide`."""
    return shared.divide(
        sweep.variants,
        lambda context: machines.of_jobs(context.config, submission.settings(context, site)),
        taken_over,
    )


def describe(nodes: Sequence[Node]) -> str:
    """The jobs and what each waits for, one in a line."""
    rows = [("job", "stages", "after", "after the end of")]
    for node in nodes:
        end = "/".join(node.after_end_of) if node.after_end_of and node.after_end_of not in node.after else ""
        stages = ", ".join(map(str, node.job.stages))
        rows.append(("/".join(node.key), stages, ", ".join(map("/".join, node.after)) or "-", end))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)


def submit(sweep: Sweep, site: Path | None, accept: Collection[str] = ()) -> list[tuple[str, Submitted]]:
    """Submit the jobs of all variants. Everything is checked before the first job is queued.

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
        nodes = plan(divide(sweep, site, taken_over=True), site, sweep.settings.at_once)
        console.print(describe(nodes))
        for name in dict.fromkeys(node.key[0] for node in nodes):
            own = [node for node in nodes if node.key[0] == name]
            submission.prepare(own[0].variant.variant.context, own[0].slurm, [node.job for node in own])
        return list(_submitted(nodes))


def _submitted(nodes: Sequence[Node]) -> Iterator[tuple[str, Submitted]]:
    """Submit the jobs in order. If Slurm refuses one, all are cancelled."""
    ids: dict[tuple[str, str], str] = {}
    of_run: dict[str, list[Submitted]] = {}
    try:
        for node in nodes:
            name, run = node.key[0], node.variant.variant.context.run.path
            after = [ids[key] for key in node.after]
            end = [ids[node.after_end_of]] if node.after_end_of and node.after_end_of not in node.after else []
            before = of_run.setdefault(name, [])
            before.append(submission.send(node.job, node.slurm, run, before, after, end))
            ids[node.key] = before[-1].id
    except UserError:
        if ids:
            scheduler.cancel(list(ids.values()))
        raise
    for name, jobs_of_run in of_run.items():
        yield from ((name, job) for job in jobs_of_run)

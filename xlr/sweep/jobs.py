"""A sweep on Slurm: one graph of jobs over all variants, in which a shared stage stands once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xlr.cluster import slurm as scheduler
from xlr.jobs import graph as jobs
from xlr.jobs import machines, submission
from xlr.jobs.graph import Job
from xlr.pipeline import Stage
from xlr.settings.slurmconfig import SlurmConfig
from xlr.sweep import shared
from xlr.sweep.shared import Planned
from xlr.sweep.variants import Sweep

Key = tuple[str, str]
"""A variant's name and its job's."""


@dataclass(frozen=True)
class Node:
    """A job of one variant, in the graph of the sweep."""

    variant: Planned
    slurm: SlurmConfig
    job: Job
    after: tuple[Key, ...]
    """Variant and job, for each that must succeed first."""
    after_end_of: Key | None
    """Variant and job that must end first, however it ends."""

    @property
    def key(self) -> Key:
        """Its variant and its job."""
        return self.variant.variant.name, self.job.name

    @property
    def run(self) -> Path:
        """The run directory of its variant."""
        return self.variant.variant.context.run.path


@dataclass
class _Lanes:
    """Jobs that run one after the other in as many lanes as jobs may run at a time."""

    ends: list[float]
    last: list[Key | None]
    finished: dict[Key, float] = field(default_factory=dict)

    def place(self, key: Key, after: Collection[Key], seconds: float) -> Key | None:
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
    of_stage: dict[tuple[str, Stage], Key] = {}
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

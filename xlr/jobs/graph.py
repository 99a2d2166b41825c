"""The Slurm jobs of a run: the stages of each job, its dependencies, and its sbatch command.

Pure functions of the configuration; `submission` calls Slurm.
"""

import math
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xlr.cluster import slurm as scheduler
from xlr.errors import UserError
from xlr.pipeline import Stage
from xlr.records import ModelKey
from xlr.settings.slurmconfig import SAVING_SECONDS, JobConfig, SlurmConfig
from xlr.settings.trainconfig import TrainConfig
from xlr.stages import STAGES


def _defaults() -> SlurmConfig:
    """The kinds of jobs in the registry of stages. Evaluation has lower priority than the next iteration."""
    names: dict[str, list[str]] = {}
    for kind in STAGES:
        if not kind.only_start:
            names.setdefault(kind.job, []).append(kind.name)
    jobs = {job: {"stages": stages, "nice": 100 if job == "evaluate" else None} for job, stages in names.items()}
    return SlurmConfig.model_validate({"nodes": 1, "max_restarts": 20, "jobs": jobs})


DEFAULTS = _defaults()
SCRIPTS = ("lib.sh", "annotate.sbatch", "train.sbatch", "evaluate.sbatch", "iteration.sbatch", "doctor.sbatch")
ARRAY = "array.sbatch"  # of sweeps alone
ENDING_SECONDS = 120  # before the time limit, as in annotate.sbatch and evaluate.sbatch
_OPTIONS = ("time", "partition", "account", "qos", "constraint", "nice")  # sbatch has the same names


def layered(*layers: SlurmConfig) -> SlurmConfig:
    """Merge layers of settings; later layers override earlier ones.

    A stage belongs to the last kind of job that lists it. A kind that has lost all its stages is removed.
    """
    tree: dict[str, Any] = {}
    kinds: dict[str, dict[str, Any]] = {}
    for layer in layers:
        own = layer.model_dump(exclude_none=True)
        for name, kind in own.pop("jobs").items():
            for other in kinds.values():
                other["stages"] = [stage for stage in other.get("stages", ()) if stage not in kind.get("stages", ())]
            kinds[name] = kinds.get(name, {}) | kind
        tree |= own
    return SlurmConfig.model_validate(tree | {"jobs": {name: kind for name, kind in kinds.items() if kind["stages"]}})


@dataclass(frozen=True)
class Job:
    """One job: some stages of one iteration, and the names of the jobs that it waits for."""

    kind: str
    iteration: ModelKey
    stages: tuple[Stage, ...]
    after: tuple[str, ...]
    awaited: bool = True
    """Whether another job waits for it."""

    @property
    def name(self) -> str:
        """The name of the job in the graph, in messages and of its log file."""
        return f"{self.kind}-{self.iteration}"


def plan(needs: Mapping[Stage, Sequence[Stage]], slurm: SlurmConfig) -> list[Job]:
    """The jobs of the stages in `needs`, in an order in which each comes after the jobs it waits for.

    Args:
        needs: stage to make -> the stages that it reads from. Stages that are not keys are finished.

    Raises:
        UserError: two kinds of jobs would wait for each other, or no kind of job has a stage.
    """
    kind_of = kinds_of_stages(slurm)
    require_kinds({stage.name for stage in needs}, slurm)
    members: dict[tuple[str, ModelKey], list[Stage]] = {}
    for stage in needs:
        members.setdefault((kind_of[stage.name], stage.iteration), []).append(stage)
    job_of = {stage: key for key, stages in members.items() for stage in stages}
    waits_for = {
        key: {job_of[need] for stage in stages for need in needs[stage] if need in job_of} - {key}
        for key, stages in members.items()
    }
    jobs: list[Job] = []
    ordered: dict[tuple[str, ModelKey], str] = {}
    while len(ordered) < len(waits_for):
        ready = [key for key in waits_for if key not in ordered and waits_for[key] <= set(ordered)]
        if not ready:
            names = ", ".join(sorted({kind for kind, _ in set(waits_for) - set(ordered)}))
            raise UserError(f"slurm.jobs: {names} wait for each other; give stages that follow each other to one kind")
        kind, iteration = key = min(ready, key=lambda key: slurm.jobs[key[0]].nice or 0)
        after = tuple(name for other, name in ordered.items() if other in waits_for[key])
        jobs.append(Job(kind, iteration, tuple(members[key]), after))
        ordered[key] = jobs[-1].name
    awaited = {name for job in jobs for name in job.after}
    return [replace(job, awaited=job.name in awaited) for job in jobs]


def kinds_of_stages(slurm: SlurmConfig) -> dict[str, str]:
    """Stage name -> kind of job.

    Settings do not list the stages that run only at the start. Each runs in the kind of job of the stages that share
    its default kind.
    """
    kind_of: dict[str, str] = {stage: name for name, kind in slurm.jobs.items() for stage in kind.stages or ()}
    for start in (stage for stage in STAGES if stage.only_start):
        for other in STAGES:
            if other.job == start.job and other.name in kind_of:
                kind_of[start.name] = kind_of[other.name]
    return kind_of


def require_kinds(stages: Collection[str], slurm: SlurmConfig) -> None:
    """Check that each of these stages has a kind of job.

    Raises:
        UserError: one has none.
    """
    if missing := set(stages) - kinds_of_stages(slurm).keys():
        raise UserError(
            f"slurm.jobs: no kind of job has {', '.join(sorted(missing))}; add it to the stages of one of them"
        )


def wants(slurm: SlurmConfig, kind: str) -> JobConfig:
    """What jobs of a kind ask for: the settings of the kind override those of all kinds."""
    common = slurm.model_dump(include=set(JobConfig.model_fields), exclude_none=True)
    return JobConfig.model_validate(common | slurm.jobs[kind].model_dump(exclude={"stages"}, exclude_none=True))


def ranks_without_work(job: Job, wanted: JobConfig, train: TrainConfig) -> str | None:
    """A warning if the pairs of a step do not keep all training ranks of a job busy; None if they do.

    A pair is computed by one rank. With four pairs a rank, ranks compute for 0.95 of their time; with two, for 0.7 to
    0.8 (benchmarks/balance.py).
    """
    if not _training(job.stages):
        return None
    ranks, pairs = wanted.most_nodes * tasks_per_node(job, wanted), train.global_batch_size
    if ranks == 1 or pairs >= 2 * ranks:
        return None
    idle = f"{ranks - pairs} of them compute nothing" if pairs < ranks else "all wait for the longest pair"
    return (
        f"slurm.jobs.{job.kind}: {ranks} training ranks share the {pairs} pairs of a step, so {idle}; use at most "
        f"{max(pairs // 4, 1)} ranks, or set {_training(job.stages)}.global_batch_size to {4 * ranks}"
    )


def no_gpus(todo: Sequence[Job], slurm: SlurmConfig) -> str | None:
    """A warning if no job asks for a GPU; None if one does."""
    asked = [wants(slurm, job.kind) for job in todo]
    if not asked or any(gpus_per_node(own) or any("gpu" in option for option in own.options or ()) for own in asked):
        return None
    return "no job asks for a GPU, so everything is computed on CPUs; set slurm.gpus, here or in the site profile"


def tasks_per_node(job: Job, wanted: JobConfig) -> int:
    """Tasks on each node: one a GPU if the job trains, else one."""
    return (wanted.tasks or max(gpus_per_node(wanted), 1)) if _training(job.stages) else 1


def gpus_per_node(wanted: JobConfig) -> int:
    """The GPUs that a job asks for on each node."""
    return int(str(wanted.gpus or 0).rpartition(":")[2])


def options(job: Job, wanted: JobConfig) -> list[str]:
    """The sbatch options for what a job asks for.

    Raises:
        UserError: a node has more tasks than CPUs, or Slurm would not give the most nodes of a range.
    """
    tasks, least, most = tasks_per_node(job, wanted), wanted.fewest_nodes, wanted.most_nodes
    # Slurm gives no more nodes than the fewest nodes have tasks. One task a node is its default.
    found = [f"--nodes={wanted.nodes}", *([f"--ntasks-per-node={tasks}"] if tasks > 1 or least == most else [])]
    if tasks > 1 and least * tasks < most:
        raise UserError(
            f"slurm.jobs.{job.kind}.nodes: {wanted.nodes} with {tasks} tasks a node, of which Slurm gives at most "
            f"{least * tasks} nodes; set {math.ceil(most / tasks)}-{most} or {least}-{least * tasks}"
        )
    if wanted.cpus:
        if wanted.cpus < tasks:
            raise UserError(
                f"slurm.jobs.{job.kind}.cpus: {wanted.cpus} CPUs are too few for {tasks} tasks per node; raise it"
            )
        found.append(f"--cpus-per-task={wanted.cpus // tasks}")
    if gpus_per_node(wanted):
        found.append(f"--gres=gpu:{wanted.gpus}")
    if wanted.memory:
        found.append(f"--mem={wanted.memory}")
    values = {name: getattr(wanted, name) for name in _OPTIONS}
    found += [f"--{name}={value}" for name, value in values.items() if value is not None]
    return [*found, *(wanted.options or ())]


def _signal(job: Job, wanted: JobConfig) -> list[str]:
    """The option that tells a training job to save before its time limit; other jobs have it in their scripts.

    A checkpoint of an 8B model has 96 GB, which take 2 to 4 minutes at 0.4 to 0.8 GB/s; the step comes before.
    """
    if not _training(job.stages):
        return []
    limit = scheduler.limit_seconds(wanted.time) if wanted.time else None
    return [f"--signal=USR1@{SAVING_SECONDS if limit is None else min(SAVING_SECONDS, limit // 5)}"]


def command(
    job: Job, slurm: SlurmConfig, run: Path, after: Sequence[str], after_end_of: Sequence[str] = ()
) -> list[str]:
    """The sbatch command of a job.

    Args:
        after: ids of the jobs that must succeed first.
        after_end_of: ids of the jobs that must end first, however they end.
    """
    return [
        "sbatch",
        "--parsable",
        f"--job-name={run.name}-{job.name}",
        f"--output={run / 'slurm' / 'logs' / job.name}-%j.out",
        *_requests(job, slurm),
        *_dependency({"afterok": after, "afterany": after_end_of}),
        *script(job, run),
    ]


def array_command(
    tasks: Mapping[int, Job],
    slurm: SlurmConfig,
    name: str,
    scripts: Path,
    logs: Path,
    waits: Mapping[str, Sequence[str]],
    at_once: int | None = None,
) -> list[str]:
    """The sbatch command of an array of like jobs of several runs.

    Args:
        tasks: number of the task -> its job. All ask for the same.
        scripts: the folder with a file for each task, which `ARRAY` reads; that script lies two folders above.
        waits: kind of dependency -> ids of jobs.
        at_once: tasks that may run at the same time.
    """
    first, limit = next(iter(tasks.values())), f"%{at_once}" if at_once else ""
    return [
        "sbatch",
        "--parsable",
        f"--job-name={name}",
        f"--output={logs / first.name}-%A_%a.out",
        # The scripts of the tasks have this option themselves, but Slurm reads it in the array's script alone.
        *([] if _training(first.stages) else [f"--signal=USR1@{ENDING_SECONDS}"]),
        *_requests(first, slurm),
        f"--array={','.join(map(str, tasks))}{limit}",
        *_dependency(waits),
        str(scripts.parent.parent / ARRAY),
        str(scripts),
    ]


def alike(job: Job, slurm: SlurmConfig) -> tuple[str, ...]:
    """What jobs of different runs must have in common to be tasks of one array."""
    return (job.name, str(bool(_training(job.stages))), *_requests(job, slurm))


def _requests(job: Job, slurm: SlurmConfig) -> list[str]:
    wanted = wants(slurm, job.kind)
    # The user's own --signal comes later and counts.
    return [*_signal(job, wanted), *_mail(job, slurm), *options(job, wanted)]


def _dependency(kinds: Mapping[str, Sequence[str]]) -> list[str]:
    waits = ",".join(f"{kind}:{':'.join(ids)}" for kind, ids in kinds.items() if ids)
    return [f"--dependency={waits}", "--kill-on-invalid-dep=yes"] if waits else []


def _mail(job: Job, slurm: SlurmConfig) -> list[str]:
    if slurm.mail is None:
        return []
    return [f"--mail-user={slurm.mail}", f"--mail-type={'FAIL' if job.awaited else 'FAIL,END'}"]


def script(job: Job, run: Path) -> list[str]:
    """The job's script and its arguments."""
    training = _training(job.stages)
    others = ",".join(stage.name for stage in job.stages if not stage.kind.in_ranks)
    if training and others:
        script = "iteration"
    elif training:
        script = "train"
    else:
        script = "evaluate" if {stage.kind.job for stage in job.stages} == {"evaluate"} else "annotate"
    return [str(run / "slurm" / f"{script}.sbatch"), str(run), str(job.iteration), *filter(None, [others, training])]


def _training(stages: Iterable[Stage]) -> str | None:
    """The name of the stage that runs in ranks, if there is one."""
    return next((stage.name for stage in stages if stage.kind.in_ranks), None)


def environment(slurm: SlurmConfig, python: str, reuses: bool = False) -> str:
    """The text of environment.sh, which every job sources first. The shell expands variables in the settings.

    Args:
        python: the interpreter if slurm.python is not set and there is no container.
        reuses: whether the run takes over what other runs have made.
    """
    if slurm.container and slurm.python is None:
        python = "python3"
    lines = [
        "# shellcheck shell=bash disable=SC2034",
        "# Written by `xlr submit`: the settings of this cluster and this run.",
        "set +u  # modules and conda read variables that are not set",
        *(slurm.setup or ()),
        "set -u",
        f"python={shlex.quote(slurm.python or python)}",
        f"container=({slurm.container or ''})",
        f"srun_options=({' '.join(slurm.srun or ())})",
        f"max_restarts={slurm.max_restarts}",
        f"reuses={'yes' if reuses else ''}",
    ]
    return "\n".join(lines) + "\n"


def graph(jobs: Sequence[Job], slurm: SlurmConfig) -> str:
    """The jobs as a table, and what their time limits add up to.

    A row has the name, the stages, the jobs that it waits for, nodes, GPUs on all of them (on the most nodes, of a
    range), and the time limit.
    `slurm.options` are not read.
    """
    rows = [("job", "stages", "after", "nodes", "GPUs", "limit")]
    for job in jobs:
        wanted, (_, gpus) = wants(slurm, job.kind), _size(job, slurm)
        what = job.name, ", ".join(map(str, job.stages)), ", ".join(job.after) or "-"
        rows.append((*what, str(wanted.nodes or 1), str(gpus or "-"), wanted.time or "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)
    return table + (f"{_sum(jobs, slurm)}\n" if jobs else "")


def _size(job: Job, slurm: SlurmConfig) -> tuple[int, int]:
    """How many nodes and GPUs a job has at most."""
    wanted = wants(slurm, job.kind)
    return wanted.most_nodes, wanted.most_nodes * gpus_per_node(wanted)


def _sum(jobs: Sequence[Job], slurm: SlurmConfig) -> str:
    """The sums of the time limits in words: along the graph's longest path, and over nodes and GPUs of all jobs."""
    limits = {job.kind: scheduler.limit_seconds(wants(slurm, job.kind).time or "") for job in jobs}
    if unlimited := [kind for kind, limit in limits.items() if not limit]:  # 0 is no limit, too
        return f"time limits: no sum, because {', '.join(unlimited)} jobs have no slurm.time"
    ends: dict[str, int] = {}
    node_seconds = gpu_seconds = 0
    for job in jobs:
        seconds, (nodes, gpus) = limits[job.kind] or 0, _size(job, slurm)
        ends[job.name] = seconds + max((ends[name] for name in job.after), default=0)
        node_seconds += nodes * seconds
        gpu_seconds += gpus * seconds
    found = [f"{_hours(max(ends.values()))} hours one after the other", f"{_hours(node_seconds)} node-hours"]
    found += [f"{_hours(gpu_seconds)} GPU-hours"] if gpu_seconds else []
    return f"time limits: {', '.join(found)}; waiting and restarts come on top"


def _hours(seconds: int) -> str:
    return f"{seconds / 3600:,.1f}".removesuffix(".0")

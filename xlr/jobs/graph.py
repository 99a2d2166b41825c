"""The jobs that a run is on Slurm: which stages go together, what waits for what, and the text that sbatch gets.

Pure functions of the configuration; `submission` calls Slurm.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlr.errors import UserError
from xlr.pipeline import Stage
from xlr.records import ModelKey
from xlr.slurmconfig import JobConfig, SlurmConfig
from xlr.stages import STAGES


def _defaults() -> SlurmConfig:
    """The kinds of jobs that the registry of stages names. Evaluation yields to the jobs of the next iteration."""
    names: dict[str, list[str]] = {}
    for kind in STAGES:
        if not kind.only_start:
            names.setdefault(kind.job, []).append(kind.name)
    jobs = {job: {"stages": stages, "nice": 100 if job == "evaluate" else None} for job, stages in names.items()}
    return SlurmConfig.model_validate({"nodes": 1, "max_restarts": 20, "jobs": jobs})


DEFAULTS = _defaults()
SCRIPTS = ("lib.sh", "annotate.sbatch", "train.sbatch", "evaluate.sbatch", "iteration.sbatch", "doctor.sbatch")
_OPTIONS = ("time", "partition", "account", "qos", "constraint", "nice")  # which sbatch calls by the same names


def layered(*layers: SlurmConfig) -> SlurmConfig:
    """Settings where each layer's go before those of the layers to its left.

    A stage belongs to the kind of job that named it last; a kind without stages is none.
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
    """One job: stages of one iteration, and the names of the jobs it waits for."""

    kind: str
    iteration: ModelKey
    stages: tuple[Stage, ...]
    after: tuple[str, ...]

    @property
    def name(self) -> str:
        """How the graph, log files and messages name it."""
        return f"{self.kind}-{self.iteration}"


def plan(needs: Mapping[Stage, Sequence[Stage]], slurm: SlurmConfig) -> list[Job]:
    """The jobs of the stages in `needs`, each after those it waits for.

    Args:
        needs: each stage that is to be made, and the stages it reads from; those that are not keys are done.

    Raises:
        UserError: two kinds of jobs would wait for each other, or a stage is in none.
    """
    kind_of: dict[str, str] = {stage: name for name, kind in slurm.jobs.items() for stage in kind.stages or ()}
    for start in (stage for stage in STAGES if stage.only_start):
        # It goes with the stages that its default kind of job has beside it.
        for beside in STAGES:
            if beside.job == start.job and beside.name in kind_of:
                kind_of[start.name] = kind_of[beside.name]
    if homeless := {stage.name for stage in needs} - set(kind_of):
        raise UserError(f"slurm.jobs: no kind of job has {', '.join(sorted(homeless))}; name them in one's stages")
    members: dict[tuple[str, ModelKey], list[Stage]] = {}
    for stage in needs:
        members.setdefault((kind_of[stage.name], stage.iteration), []).append(stage)
    home = {stage: key for key, stages in members.items() for stage in stages}
    waiting = {
        key: {home[need] for stage in stages for need in needs[stage] if need in home} - {key}
        for key, stages in members.items()
    }
    jobs: list[Job] = []
    placed: dict[tuple[str, ModelKey], str] = {}
    while len(placed) < len(waiting):
        ready = [key for key in waiting if key not in placed and waiting[key] <= set(placed)]
        if not ready:
            names = ", ".join(sorted({kind for kind, _ in set(waiting) - set(placed)}))
            raise UserError(f"slurm.jobs: {names} wait for each other; put stages that follow one another together")
        kind, iteration = key = min(ready, key=lambda key: slurm.jobs[key[0]].nice or 0)
        after = tuple(name for other, name in placed.items() if other in waiting[key])
        jobs.append(Job(kind, iteration, tuple(members[key]), after))
        placed[key] = jobs[-1].name
    return jobs


def wants(slurm: SlurmConfig, kind: str) -> JobConfig:
    """What jobs of a kind ask for: its own settings, and those of all kinds where it has none."""
    everywhere = slurm.model_dump(include=set(JobConfig.model_fields), exclude_none=True)
    return JobConfig.model_validate(everywhere | slurm.jobs[kind].model_dump(exclude={"stages"}, exclude_none=True))


def options(job: Job, wanted: JobConfig) -> list[str]:
    """The sbatch options of what a job asks for.

    Raises:
        UserError: more tasks than CPUs.
    """
    gpus = int(str(wanted.gpus or 0).rpartition(":")[2])
    tasks = (wanted.tasks or max(gpus, 1)) if _training(job.stages) else 1
    found = [f"--nodes={wanted.nodes}", f"--ntasks-per-node={tasks}"]
    if wanted.cpus:
        if wanted.cpus < tasks:
            raise UserError(f"slurm.jobs.{job.kind}.cpus: {wanted.cpus} are too few for {tasks} tasks of a node")
        found.append(f"--cpus-per-task={wanted.cpus // tasks}")
    if gpus:
        found.append(f"--gres=gpu:{wanted.gpus}")
    if wanted.memory:
        found.append(f"--mem={wanted.memory}")
    values = {name: getattr(wanted, name) for name in _OPTIONS}
    return (
        found + [f"--{name}={value}" for name, value in values.items() if value is not None] + [*(wanted.options or ())]
    )


def command(job: Job, slurm: SlurmConfig, run: Path, after: Sequence[str]) -> list[str]:
    """The sbatch command of a job.

    Args:
        after: ids of the jobs that must have succeeded.
    """
    dependency = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return [
        "sbatch",
        "--parsable",
        f"--job-name={run.name}-{job.name}",
        f"--output={run / 'slurm' / 'logs' / job.name}-%j.out",
        *options(job, wants(slurm, job.kind)),
        *dependency,
        *_script(job, run),
    ]


def _script(job: Job, run: Path) -> list[str]:
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
    """The name of the stage that computes in ranks, if there is one."""
    return next((stage.name for stage in stages if stage.kind.in_ranks), None)


def environment(slurm: SlurmConfig, python: str) -> str:
    """What every job reads first. Words of the user stay as they are, for the shell to read.

    Args:
        python: the interpreter where none is set.
    """
    if slurm.container and slurm.python is None:
        python = "python3"
    lines = [
        "# shellcheck shell=bash disable=SC2034",
        "# Written by `xlr submit`: what belongs to this cluster and this run.",
        "set +u  # modules and conda read variables that are not set",
        *(slurm.setup or ()),
        "set -u",
        f"python={shlex.quote(slurm.python or python)}",
        f"container=({slurm.container or ''})",
        f"srun_options=({' '.join(slurm.srun or ())})",
        f"max_restarts={slurm.max_restarts}",
    ]
    return "\n".join(lines) + "\n"


def graph(jobs: Sequence[Job]) -> str:
    """The jobs as a table: name, stages, what it waits for."""
    rows = [("job", "stages", "after")]
    rows += [(job.name, ", ".join(map(str, job.stages)), ", ".join(job.after) or "-") for job in jobs]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)

"""A run on Slurm: submit its jobs, show their states, cancel them, find their logs.

Writes `RUN/slurm/`: the submitted scripts, `jobs.json`, and the output of the jobs in `logs/`.
"""

import os
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from xlr import pipeline
from xlr.cluster import slurm as scheduler
from xlr.cluster.slurm import JobState
from xlr.configfile import load_section
from xlr.errors import UserError
from xlr.jobs import graph as jobs
from xlr.jobs import machines
from xlr.jobs.graph import Job
from xlr.pipeline import Stage
from xlr.run.context import Context
from xlr.run.files import read_json, sealed, write_json, write_text
from xlr.settings.slurmconfig import SlurmConfig
from xlr.shipped import shipped
from xlr.terminal.console import console

SITE = Path("~/.config/xlr/site.yaml")
AUTO = "auto"
_OF_NOTHING = "0:30:00"  # of a kind of job whose stages are all finished

# What to do about a reason that Slurm gives.
_REMEDIES = {
    "DependencyNeverSatisfied": "a job that it waits for failed",
    "JobLaunchFailure": "the node could not start it; check that it sees the run directory",
    "NonZeroExitCode": "see its log",
    "TimeLimit": "it had no time to save; set a larger N in --signal=USR1@N of slurm.options, or a longer slurm.time",
}


@dataclass(frozen=True)
class Submitted:
    """A submitted job, as in jobs.json."""

    name: str
    id: Annotated[
        str, Field(pattern=r"^[0-9]+(_[0-9]+)?$")
    ]  # also of a task of an array; becomes an argument of scancel and scontrol
    stages: list[str]
    after: list[str]
    log: str


class _Jobs(TypedDict):
    """The file `slurm/jobs.json`."""

    run: str
    """The run directory that the jobs work on."""
    jobs: list[Submitted]
    seal: str


def settings(context: Context, site: Path | None) -> SlurmConfig:
    """The settings of the run, which override the site profile, which overrides the defaults.

    Raises:
        UserError: the profile does not exist or is not valid.
    """
    profile = site or SITE.expanduser()
    layers = [load_section(profile, SlurmConfig)] if site or os.path.lexists(profile) else []
    return jobs.layered(jobs.DEFAULTS, *layers, context.config.slurm)


def timed(context: Context, site: Path | None) -> SlurmConfig:
    """The settings of the run, with planned time limits where they say `auto`.

    Raises:
        UserError: the profile is not valid, the run cannot be planned, or a stage of such a job cannot be timed.
    """
    slurm = settings(context, site)
    jobs.require_kinds({stage.name for stage in pipeline.stages(context.config)}, slurm)
    automatic = [name for name in slurm.jobs if jobs.wants(slurm, name).time == AUTO]
    if not automatic:
        return slurm
    from xlr.planning import choose  # imports torch
    from xlr.planning import plan as planning
    from xlr.planning.planner import Planner

    stages = planning.make(Planner(context, machines.of_jobs(context.config, slurm)), lambda _: None)["stages"]
    limits = choose.limits(stages, jobs.kinds_of_stages(slurm).__getitem__)
    left = {jobs.kinds_of_stages(slurm)[own["stage"].split(" ")[0]] for own in stages if own["took"] is None}
    for name in automatic:
        if name in left and name not in limits:
            raise UserError(
                f"slurm.jobs.{name}.time: is {AUTO}, but judging cannot be timed; give the job a limit, such as "
                '"4:00:00", or let another kind of job judge and rate'
            )
    times = SlurmConfig.model_validate(
        {
            "jobs": {
                name: {"time": limits.get(name, _OF_NOTHING), "stages": slurm.jobs[name].stages} for name in automatic
            }
        }
    )
    return jobs.layered(slurm, times)


def plan(context: Context, slurm: SlurmConfig) -> list[Job]:
    """The jobs of all unfinished stages."""
    awaited = pipeline.awaited(context)
    return jobs.plan({stage: awaited[stage] for stage in awaited if not pipeline.done(context, stage)}, slurm)


def warnings(context: Context, slurm: SlurmConfig, todo: Sequence[Job]) -> list[str]:
    """What is allowed but wastes processors or time, in words."""
    found = [jobs.no_gpus(todo, slurm)]
    found += [
        jobs.ranks_without_work(job, jobs.wants(slurm, job.kind), getattr(context.config, stage.name))
        for job in todo
        for stage in job.stages
        if stage.kind.in_ranks
    ]
    found += _not_fitting(context, slurm)
    return list(dict.fromkeys(warning for warning in found if warning))


def _not_fitting(context: Context, slurm: SlurmConfig) -> list[str]:
    """What does not fit the GPUs that the site profile names, by the plan; or why there is none."""
    if slurm.hardware is None:
        return []
    from xlr.planning import plan as planning  # imports torch
    from xlr.planning.planner import Planner

    try:
        planner = Planner(context, machines.of_jobs(context.config, slurm))
        return planning.make(planner, machines.limits(slurm))["problems"]
    except UserError as error:
        return [f"not planned: {error}"]


def describe(context: Context, site: Path | None) -> str:
    """What `submit` would do: graph, sbatch commands, environment and scripts. Needs no Slurm and writes nothing."""
    slurm, run = timed(context, site), context.run.path
    todo = plan(context, slurm)
    commands = [jobs.command(job, slurm, run, [f"<{name}>" for name in job.after]) for job in todo]
    parts = [
        jobs.graph(todo, slurm),
        "".join(f"warning: {warning}\n" for warning in warnings(context, slurm, todo)),
        "".join(shlex.join(command) + "\n" for command in commands),
        f"--- {run}/slurm/environment.sh\n{_environment(context, slurm)}",
        *(f"--- {run}/slurm/{name}\n{_shipped(name)}" for name in jobs.SCRIPTS),
    ]
    return "\n".join(part for part in parts if part)


def submit(context: Context, site: Path | None, accept: Collection[str] = ()) -> list[Submitted]:
    """Submit the jobs of all unfinished stages.

    Args:
        accept: kinds of changed conditions under which unfinished pieces may be continued; see `identity`.

    Raises:
        UserError: jobs of the run are queued or running, a stage has bad input, or Slurm refuses a job.
    """
    from xlr.findings import earlystop  # imports torch

    scheduler.require()
    slurm = timed(context, site)
    require_idle(context)
    with pipeline.holding(context, pipeline.stages(context.config), accept):
        earlystop.settle(context)
        todo = plan(context, slurm)
        if not todo:
            return []
        console.print(jobs.graph(todo, slurm))
        prepare(context, slurm, todo)
        return _submit(todo, slurm, context.run.path)


def require_idle(context: Context) -> None:
    """Check that no job of the run is queued or running.

    Raises:
        UserError: one is.
    """
    active = [f"{job.id} ({job.name}, {state.state})" for job, state in states(context) if state and state.active]
    if active:
        run = context.run.path
        raise UserError(
            f"{run}: its jobs are queued or running: {', '.join(active)}; wait for them, or run "
            f"`xlr cancel {shlex.quote(str(run))}`"
        )


def prepare(context: Context, slurm: SlurmConfig, todo: Sequence[Job]) -> None:
    """Write what the jobs of a run need, and check before any of them is queued that they can work.

    Raises:
        UserError: a stage has bad input, or Slurm would refuse a job.
    """
    for warning in warnings(context, slurm, todo):
        console.print(f"warning: {warning}")
    write_scripts(context, slurm)
    for job in {job.kind: job for job in todo}.values():
        require_accepted(job, slurm, context.run.path)
    pipeline.check(context)


def write_scripts(context: Context, slurm: SlurmConfig) -> None:
    """Copy the job scripts into the run directory, so that an update of xlr does not change them while jobs wait."""
    folder = context.run.path / "slurm"
    for name in jobs.SCRIPTS:
        write_text(folder / name, _shipped(name))
    write_text(folder / "environment.sh", _environment(context, slurm))
    (folder / "logs").mkdir(exist_ok=True)


def _environment(context: Context, slurm: SlurmConfig) -> str:
    return jobs.environment(slurm, sys.executable, bool(context.config.reuse))


def require_accepted(job: Job, slurm: SlurmConfig, run: Path) -> None:
    """Ask Slurm whether it accepts a job, without queueing it.

    Raises:
        UserError: it does not.
    """
    command = jobs.command(job, slurm, run, [])
    try:
        scheduler.submit([command[0], "--test-only", *command[1:]])
    except UserError as error:
        raise UserError(f"slurm.jobs.{job.kind}: {error}; partitions here: {scheduler.partitions()}") from error


def _submit(todo: list[Job], slurm: SlurmConfig, run: Path) -> list[Submitted]:
    """Submit the jobs in order. If Slurm refuses one, the submitted ones are cancelled."""
    found: list[Submitted] = []
    ids: dict[str, str] = {}
    try:
        for job in todo:
            found.append(send(job, slurm, run, found, [ids[name] for name in job.after]))
            ids[job.name] = found[-1].id
    except UserError:
        if found:
            scheduler.cancel([job.id for job in found])
        raise
    return found


def send(
    job: Job,
    slurm: SlurmConfig,
    run: Path,
    before: Sequence[Submitted],
    after: Sequence[str],
    after_end_of: Sequence[str] = (),
) -> Submitted:
    """Submit one job, and record it.

    Args:
        before: the jobs of the run that were submitted before it.
        after: ids of the jobs that must succeed first.
        after_end_of: ids of the jobs that must end first, however they end.

    Raises:
        UserError: Slurm refuses it.
    """
    number = scheduler.submit(jobs.command(job, slurm, run, after, after_end_of))
    log = run / "slurm" / "logs" / f"{job.name}-{number}.out"
    own = Submitted(job.name, number, list(map(str, job.stages)), [*after, *after_end_of], str(log))
    record(run, [*before, own])
    return own


def record(run: Path, sent: Sequence[Submitted]) -> None:
    """Record all jobs of the last submission of a run."""
    write_json(_file(run), sealed({"run": str(run.resolve()), "jobs": [asdict(one) for one in sent]}))


def submitted(run: Path) -> list[Submitted]:
    """The jobs of the last submission of this run directory; a copy of a run directory has none.

    Raises:
        UserError: their file is damaged.
    """
    if not _file(run).is_file():
        return []
    found = read_json(_file(run), _Jobs, "delete it after cancelling the run's jobs with scancel")
    return [Submitted(**job) for job in found["jobs"]] if found["run"] == str(run.resolve()) else []


def states(context: Context) -> Iterator[tuple[Submitted, JobState | None]]:
    """The jobs of the last submission with their states in Slurm; None if Slurm does not know the job any more."""
    for job in submitted(context.run.path):
        yield job, scheduler.job(job.id) if scheduler.available() else None


def table(context: Context) -> list[dict[str, Any]]:
    """The jobs of the last submission as rows of a table."""
    return [_row(job, state) for job, state in states(context)]


def _row(job: Submitted, state: JobState | None) -> dict[str, Any]:
    state = state or JobState(
        "unknown", "Slurm does not know it any more" if scheduler.available() else "no Slurm on this machine"
    )
    remedy = _REMEDIES.get(state.reason)
    return {
        "job": job.name,
        "id": job.id,
        "state": state.state,
        "reason": f"{state.reason}: {remedy}" if remedy else state.reason,
        "expected start": state.start.replace("T", " "),
        "elapsed": state.elapsed,
        "left": state.left,
        "nodes": state.nodes,
        "restarts": state.restarts or "",
        "last line": last_line(Path(job.log)),
    }


def last_line(log: Path) -> str:
    """The last line of a job's output that does not come from Slurm; empty if there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    own = [line.strip() for line in lines if line.strip() and not line.startswith(("srun: ", "slurmstepd"))]
    return own[-1] if own else ""


def cancel(context: Context) -> list[Submitted]:
    """Cancel the jobs of the run that wait or run.

    Raises:
        UserError: this machine has no Slurm, or Slurm refuses.
    """
    scheduler.require()
    active = [job for job, state in states(context) if state and state.active]
    if active:
        scheduler.cancel([job.id for job in active])
    return active


def log(context: Context, stage: Stage) -> Path:
    """The file with the output of a stage: that of its job, or the log of a run without Slurm.

    Raises:
        UserError: there is no output yet.
    """
    logs = [Path(job.log) for job in submitted(context.run.path) if str(stage) in job.stages]
    logs.append(context.run.log(stage.name, stage.iteration))
    existing = next((log for log in logs if log.is_file()), None)
    if existing is None:
        raise UserError(
            f"{logs[0]}: does not exist; {stage} has not started yet, see "
            f"`xlr status {shlex.quote(str(context.run.path))}`"
        )
    return existing


def _file(run: Path) -> Path:
    return run / "slurm" / "jobs.json"


def _shipped(name: str) -> str:
    return shipped("slurm", name).read_text(encoding="utf-8")

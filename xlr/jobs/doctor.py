"""`xlr doctor RUN`: check that a run can work on this cluster. A failed check says what to do.

The first checks run on the login node: models, disk space, Slurm, and what the jobs ask for. The others run on the
nodes, in a short job with the size of a training job: Python environment, shared file system, GPUs, the judge's
endpoint, collectives between all tasks, Ray.
"""

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xlr import pipeline
from xlr.cluster import slurm as scheduler
from xlr.cluster.ranks import Ranks, ranks
from xlr.errors import UserError
from xlr.foreign.modelfiles import weight_bytes
from xlr.jobs import graph as jobs
from xlr.jobs import submission
from xlr.jobs.graph import Job
from xlr.judging import endpoint
from xlr.pipeline import Stage
from xlr.records import INITIAL
from xlr.run.context import Context
from xlr.run.files import read_json, remove, write_json, write_text
from xlr.selftest import collectives
from xlr.selftest.check import Check
from xlr.settings.config import Config
from xlr.settings.slurmconfig import SlurmConfig
from xlr.stages import KINDS

# For each 2-byte parameter a checkpoint has 12 bytes, and the new one is complete before the old one is deleted. A
# change of the number of ranks converts all of them, and every iteration adds a model.
_DISK_BYTES_A_WEIGHT_BYTE = 20
_GIB = 1 << 30
_MINUTES, _DEEP_MINUTES = 10, 40  # time limits of the job, without and with the self-test
_POLL_SECONDS = 1.0
_VISIBLE_SECONDS = 60  # a network file system may need this long to show a file that another node wrote


def examine(context: Context, site: Path | None, deep: bool) -> Iterator[Check]:
    """Yield the result of each check as it is made. The job is submitted only if no check on the login node failed.

    Args:
        deep: whether the job also runs `xlr selftest` on its first node.
    """
    slurm = submission.timed(context, site)
    with pipeline.holding(context, []):  # writes the configuration that the job reads
        passed = True
        for check in (*_models(context), _disk(context), *_requests(context, slurm)):
            passed &= not check.remedy
            yield check
        if passed:
            yield from _by_job(context, slurm, deep)


def _models(context: Context) -> Iterator[Check]:
    from xlr.model.weights import load_config  # imports torch

    for name in context.config.opened_models:
        try:
            context.look_up()
            yield Check("model", f"{name}: {load_config(context.located(name)).model_type}")
        except UserError as error:
            yield Check(
                "model", str(error), "set it to a folder that all nodes see, or download the model from the hub first"
            )


def _disk(context: Context) -> Check:
    folder, model = context.run.path, Path(context.model(INITIAL))
    needed = weight_bytes(model) * _DISK_BYTES_A_WEIGHT_BYTE
    free = shutil.disk_usage(folder).free
    found = f"{folder}: {free // _GIB} GiB free" + (f", about {needed // _GIB} needed" if needed else "")
    return Check("disk", found, "choose a run_dir on a larger file system" if free < needed else "")


def _requests(context: Context, slurm: SlurmConfig) -> Iterator[Check]:
    """Ask Slurm whether it accepts each kind of job."""
    try:
        scheduler.require()
    except UserError as error:
        yield Check("Slurm", str(error), "run this on a login node of the cluster")
        return
    submission.write_scripts(context, slurm)
    for kind, job in {job.kind: job for job in submission.plan(context, slurm)}.items():
        try:
            submission.require_accepted(job, slurm, context.run.path)
            yield Check(f"{kind} jobs", shlex.join(jobs.options(job, jobs.wants(slurm, kind))))
        except UserError as error:
            yield Check(f"{kind} jobs", str(error), f"correct the site profile, or slurm.jobs.{kind}")


def _by_job(context: Context, slurm: SlurmConfig, deep: bool) -> Iterator[Check]:
    """Submit the job, wait for it and yield the checks that its nodes wrote."""
    run, folder = context.run.path, _folder(context)
    remove(folder)
    write_text(folder / "canary", "from the login node")
    kind = next(name for name, kind in slurm.jobs.items() if any(KINDS[stage].in_ranks for stage in kind.stages or ()))
    options = jobs.options(Job(kind, 0, (Stage("train", 0),), ()), jobs.wants(slurm, kind))
    log = folder / "job.out"
    command = ["sbatch", "--parsable", f"--job-name={run.name}-doctor", f"--output={log}", *options]
    test = folder / "selftest"
    time_limit = f"--time={_DEEP_MINUTES if deep else _MINUTES}"
    script = [str(run / "slurm" / "doctor.sbatch"), str(run), *([str(test)] if deep else [])]
    number = scheduler.submit([*command, time_limit, *script])
    try:
        while (state := scheduler.job(number)) and state.active:
            time.sleep(_POLL_SECONDS)
    except BaseException:
        scheduler.cancel([number])
        raise
    for file in sorted(folder.glob("*.json")):
        yield from (Check(**check) for check in read_json(file, list[Check], "run `xlr doctor` again"))
    if (file := test / "selftest.json").is_file():
        for own in read_json(file, dict[str, Any], "run `xlr doctor --deep` again")["checks"]:
            yield Check(f"self-test: {own['check']}", own["found"], own["remedy"])
    elif state is None or state.state != "COMPLETED":
        ended = f"{state.state} {state.reason}".strip() if state else "unknown to Slurm"
        yield Check(f"job {number}", f"{ended}: {submission.last_line(log)}", f"see {log}")


def on_node(context: Context) -> None:
    """Check one node as a task of the job, and write down the results. Called in every task."""
    own = ranks() or Ranks(0, 1, 0)
    node = os.environ["SLURMD_NODENAME"]
    write_text(_folder(context) / f"canary-{own.rank}", node)
    if own.local_rank == 0:
        checks = [_environment(node), *packages(context.config, node), *_visible(context, node), *_judge(context, node)]
        write_json(_folder(context) / f"{node}-looks.json", [asdict(check) for check in checks])
    if own.world_size > 1:
        reduced = collectives.reduce(f"{node}: ", own)
        if own.local_rank == 0:
            write_json(_folder(context) / f"{node}-meets.json", [asdict(reduced)])


def _environment(node: str) -> Check:
    import torch

    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed", "ray", "transformers")]
    gpus = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    asked = bool(os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("SLURM_JOB_GPUS"))
    remedy = (
        "this torch sees no GPU: install the build for the node's driver (nvidia-smi)" if asked and not gpus else ""
    )
    found = f"{len(gpus)} x {gpus[0]}, CUDA {torch.version.cuda}" if gpus else "no GPU"
    return Check(f"{node}: Python", f"{sys.executable}, {', '.join(versions)}; {found}", remedy)


def packages(config: Config, node: str) -> Iterator[Check]:
    """Check that a node has the packages that only some settings need; nothing if none is missing."""
    needed = {
        "vllm": ("vllm", config.generate.backend == "vllm"),
        "liger_kernel": ("fused", config.model.fused_operations is True),
        "lm_eval": ("benchmarks", config.evaluate.benchmarks is not None),
        "wandb": ("track", any("wandb" in train.report_to for train in (config.align, config.train))),
        "mlflow": ("track", any("mlflow" in train.report_to for train in (config.align, config.train))),
        "openai": ("eval", bool(config.judge.model) and config.judge.backend == "openai"),
    }
    for name, (extra, wanted) in needed.items():
        if wanted and importlib.util.find_spec(name) is None:
            remedy = f'`pip install ".[{extra}]"` there, or change the settings that need it'
            yield Check(f"{node}: {name}", "not installed here, but the configuration needs it", remedy)


def _visible(context: Context, node: str) -> Iterator[Check]:
    """Check that a node sees the files of the other nodes and the models, and has space in /tmp."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    wanted = {_folder(context) / name for name in ("canary", *(f"canary-{rank}" for rank in range(tasks)))}
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while (unseen := {path for path in wanted if not path.is_file()}) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    found = f"sees {len(wanted) - len(unseen)} of {len(wanted)} files written by the login node and all tasks"
    yield Check(f"{node}: run_dir", found, "choose a file system that all nodes share" if unseen else "")
    for name in context.config.opened_models:
        if Path(name).is_absolute() and not Path(name).is_dir():
            yield Check(f"{node}: model", f"{name} does not exist here", "put it on a file system that all nodes share")
    free = shutil.disk_usage("/tmp").free // _GIB
    remedy = "" if free else "Ray needs space in /tmp on each node: ask the administrators"
    yield Check(f"{node}: /tmp", f"{free} GiB free", remedy)


def _judge(context: Context, node: str) -> Iterator[Check]:
    """Check that a node reaches the judge's endpoint, if there is one: many compute nodes have no internet access."""
    judge, run = context.config.judge, context.run.path
    if judge.model and judge.backend == "openai" and judge.serve is None:
        try:
            endpoint.require_answering(judge)
            yield Check(f"{node}: judge", "the endpoint answers")
        except UserError as error:
            remedy = f"submit with judge.model=null, then run where it answers: xlr judge {run} judge.model=… -i t"
            if context.config.evaluate.turns:
                remedy += f", and xlr rate {run} judge.model=… -i t"
            if "judge" in context.config.score.weights:
                remedy = (
                    "score.reward needs it on the nodes that annotate: set judge.base_url to a server in the cluster"
                )
            yield Check(f"{node}: judge", str(error), remedy)


def with_ray(context: Context) -> None:
    """Check that all nodes join the Ray cluster of the job. Called once, in the driver."""
    context.pool.start()
    context.close()
    found = f"{os.environ['XLR_RAY_NODES']} joined at {os.environ['RAY_ADDRESS']}"
    own, wanted = len(os.sched_getaffinity(0)), int(os.environ["SLURM_CPUS_ON_NODE"])
    remedy = "remove --cpus-per-task, --exact and --cpu-bind from slurm.srun" if own < wanted else ""
    checks = [Check("Ray", found), Check("Ray's driver", f"uses {own} CPUs; the job has {wanted} on this node", remedy)]
    write_json(_folder(context) / "ray.json", [asdict(check) for check in checks])


def _folder(context: Context) -> Path:
    return context.run.path / "slurm" / "doctor"

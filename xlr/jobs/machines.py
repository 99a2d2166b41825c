"""What the stages of a run compute on, for plans: the machines of their Slurm jobs, others, or this one."""

from collections.abc import Callable

from xlr import pipeline
from xlr.cluster import slurm as scheduler
from xlr.errors import UserError
from xlr.jobs import graph
from xlr.pipeline import Stage
from xlr.planning import hardware
from xlr.planning.machines import Machines
from xlr.settings.config import Config
from xlr.settings.slurmconfig import SlurmConfig

_GPUS = 8  # of a node, where nothing says how many
_FALLBACK = "h100"  # where jobs ask for GPUs and nothing says of which kind


def of_jobs(config: Config, slurm: SlurmConfig) -> Callable[[Stage], Machines]:
    """What each stage's job asks for; this machine if no job asks for GPUs.

    Raises:
        UserError: the hardware of the site profile is not known, or a stage has no kind of job.
    """
    wanted = {stage: graph.wants(slurm, kind) for stage, kind in graph.kinds_of_stages(slurm).items()}
    if not any(graph.gpus_per_node(own) for own in wanted.values()):
        used = hardware.chosen(slurm.hardware, hardware.HERE)
        return _of_cpus_or_gpus(config, used, None if slurm.hardware else hardware.gpus_here() or None, 1)
    used = hardware.chosen(slurm.hardware, _FALLBACK)
    graph.require_kinds({stage.name for stage in pipeline.stages(config)}, slurm)
    return lambda stage: Machines(
        used, wanted[stage.name].fewest_nodes, max(graph.gpus_per_node(wanted[stage.name]), 1)
    )


def named(config: Config, text: str) -> Callable[[Stage], Machines]:
    """The same machines for every stage.

    Args:
        text: KIND, KIND:GPUS or KIND:GPUS:NODES.

    Raises:
        UserError: it is something else, or no profile has the kind.
    """
    kind, *counts = text.split(":")
    if len(counts) > 2 or not all(count.isdecimal() and 0 < int(count) < 100_000 for count in counts):
        raise UserError(f"--on {text}: not KIND[:GPUS[:NODES]], such as h100:8:2")
    here = hardware.gpus_here() if kind == hardware.HERE else 0
    per_node = int(counts[0]) if counts else here or None
    return _of_cpus_or_gpus(config, hardware.chosen(None, kind), per_node, int(counts[1]) if len(counts) > 1 else 1)


def _of_cpus_or_gpus(
    config: Config, used: hardware.Hardware, per_node: int | None, nodes: int
) -> Callable[[Stage], Machines]:
    def machines(stage: Stage) -> Machines:
        section = config.align if stage.name == "align" else config.train
        processes = (section.processes if stage.kind.in_ranks else config.ray.actors) or 1
        return Machines(used, nodes, per_node or (_GPUS if used.gpu else processes))

    return machines


def limits(slurm: SlurmConfig) -> Callable[[Stage], int | None]:
    """The time limit of each stage's job in seconds, if it has one."""
    kinds = graph.kinds_of_stages(slurm)
    return lambda stage: scheduler.limit_seconds(graph.wants(slurm, kinds[stage.name]).time or "")

"""How many Ray actors fit a cluster, and how many CPUs and GPUs each gets."""

from collections.abc import Sequence

from xlr.errors import UserError
from xlr.settings.config import RayConfig

_CPUS_BESIDE_A_GPU = 4


def plan_actors(nodes: Sequence[tuple[int, int]], settings: RayConfig) -> tuple[int, float]:
    """How many CPUs and GPUs each actor gets.

    Args:
        nodes: CPUs and GPUs of each node.

    Returns:
        CPUs per actor, GPUs per actor.

    Raises:
        UserError: the configuration asks for more than the cluster has.
    """
    gpus_each = settings.gpus_per_actor
    if gpus_each is None:
        gpus_each = 1.0 if any(gpus for _, gpus in nodes) else 0.0
    if gpus_each:
        slots = [_gpu_slots(gpus, gpus_each) for _, gpus in nodes]
        fair = min((cpus // slot for (cpus, _), slot in zip(nodes, slots, strict=True) if slot), default=1)
        cpus_each = settings.cpus_per_actor or max(1, min(_CPUS_BESIDE_A_GPU, fair))
    else:
        wanted = -(-(settings.actors or 1) // len(nodes))  # actors per node
        cpus_each = settings.cpus_per_actor or max(1, max(cpus for cpus, _ in nodes) // wanted)
    most = room(nodes, cpus_each, gpus_each)
    count = settings.actors or max(most, 1)
    if count > most:
        cpus, gpus = (sum(column) for column in zip(*nodes, strict=True))
        raise UserError(
            f"ray.actors: {count} actors of {cpus_each} CPUs and {gpus_each:g} GPUs do not fit a cluster of {cpus} "
            f"CPUs and {gpus} GPUs, which holds {most}; lower ray.actors, ray.cpus_per_actor or ray.gpus_per_actor"
        )
    return cpus_each, gpus_each


def with_tensor_parallelism(nodes: Sequence[tuple[int, int]], settings: RayConfig, gpus_each: int) -> RayConfig:
    """The settings with `gpus_each` GPUs per actor, for engines that use tensor parallelism on one node.

    On nodes without GPUs the settings stay as they are.

    Raises:
        UserError: no node has that many GPUs.
    """
    most = max(gpus for _, gpus in nodes)
    if most == 0:
        return settings
    if gpus_each > most:
        raise UserError(
            f"generate.tensor_parallel_size: no node has {gpus_each} GPUs, the largest has {most}; lower it"
        )
    return settings.model_copy(update={"gpus_per_actor": float(gpus_each)})


def room(nodes: Sequence[tuple[int, int]], cpus_each: int, gpus_each: float) -> int:
    """How many actors of this size fit on the nodes."""
    return sum(
        min(cpus // cpus_each, _gpu_slots(gpus, gpus_each) if gpus_each else cpus // cpus_each) for cpus, gpus in nodes
    )


def _gpu_slots(gpus: int, gpus_each: float) -> int:
    """How many actors fit on a node's GPUs. A fraction of a GPU always lies on one GPU."""
    return int(gpus / gpus_each) if gpus_each >= 1 else gpus * int(1 / gpus_each)

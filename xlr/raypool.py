"""Workers as Ray actors, fed from one plan. The only module that imports ray.

Ray restarts an actor that dies and runs its task again; results come back as they finish, each with its key.
"""

import logging
import os
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xlr.config import ModelConfig, RayConfig
from xlr.errors import UserError
from xlr.launch import ALLOCATOR

_RESTARTS = 3
_CPUS_BESIDE_A_GPU = 4


def plan_actors(nodes: Sequence[tuple[int, int]], settings: RayConfig) -> tuple[int, float, int]:
    """How many actors fit a cluster, and what each gets.

    Args:
        nodes: CPUs and GPUs of each node.

    Returns:
        CPUs an actor, GPUs an actor, actors.

    Raises:
        UserError: the configuration asks for more than there is.
    """
    gpus_each = settings.gpus_per_actor
    if gpus_each is None:
        gpus_each = 1.0 if any(gpus for _, gpus in nodes) else 0.0
    if gpus_each:
        # A fraction of a GPU never spans two.
        slots = [int(gpus / gpus_each) if gpus_each >= 1 else gpus * int(1 / gpus_each) for _, gpus in nodes]
        fair = min((cpus // slot for (cpus, _), slot in zip(nodes, slots, strict=True) if slot), default=1)
        cpus_each = settings.cpus_per_actor or max(1, min(_CPUS_BESIDE_A_GPU, fair))
    else:
        wanted = -(-(settings.actors or 1) // len(nodes))  # actors a node
        cpus_each = settings.cpus_per_actor or max(1, max(cpus for cpus, _ in nodes) // wanted)
        slots = [cpus for cpus, _ in nodes]
    most = sum(min(slot, cpus // cpus_each) for (cpus, _), slot in zip(nodes, slots, strict=True))
    count = settings.actors or max(most, 1)
    if count > most:
        cpus, gpus = (sum(column) for column in zip(*nodes, strict=True))
        raise UserError(
            f"ray.actors: {count} actors of {cpus_each} CPUs and {gpus_each:g} GPUs do not fit a cluster of {cpus} "
            f"CPUs and {gpus} GPUs, which holds {most}; lower ray.actors, ray.cpus_per_actor or ray.gpus_per_actor"
        )
    return cpus_each, gpus_each, count


class Pool:
    """Workers on a Ray instance of their own, or on the cluster that RAY_ADDRESS names.

    A local instance asks for a token that only this process and its children know, listens on loopback and has
    no dashboard unless asked for. Starts at the first `map`, ends with `close`.
    """

    def __init__(self, settings: RayConfig, model: ModelConfig):
        self._settings = settings
        self._model = model
        self._actors: list[Any] = []

    def _start(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        for name, value in ALLOCATOR.items():
            os.environ.setdefault(name, value)  # for the workers, which inherit it
        local: dict[str, Any] = {}
        if not address:  # a cluster has a token already, and Ray knows where users keep it
            os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # one a process: Ray remembers the first
            local = {"_node_ip_address": "127.0.0.1", "include_dashboard": self._settings.dashboard}
        import ray

        handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, ray.exceptions.RayError, RuntimeError) as error:
            if not address:
                raise
            raise UserError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there ({str(error).strip().splitlines()[0]}); "
                "start one, give its token in RAY_AUTH_TOKEN_PATH, or unset RAY_ADDRESS to use this machine"
            ) from error
        signal.signal(signal.SIGTERM, handler)
        self._actors = self._create_actors(ray)

    def _create_actors(self, ray: Any) -> list[Any]:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus_each, gpus_each, count = plan_actors(
            [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes], self._settings
        )
        from xlr.worker import Worker

        remote = ray.remote(num_cpus=cpus_each, num_gpus=gpus_each, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)(
            Worker
        )
        threads = None if gpus_each else cpus_each
        return [remote.remote(threads, self._model.dtype, self._model.attn_implementation) for _ in range(count)]

    def map(self, method: str, tasks: Mapping[Any, tuple[Any, ...]]) -> Iterator[tuple[Any, Any]]:
        """Call a worker's method once a task and yield `(key, result)` as results come.

        Tasks are handed out in order, one to each actor that is free.

        Raises:
            UserError: a worker's own, for example about a model it cannot open.
        """
        if not self._actors:
            self._start()
        import ray

        waiting = iter(tasks.items())
        idle = list(self._actors)
        running: dict[Any, tuple[Any, Any]] = {}
        while True:
            while idle and (task := next(waiting, None)) is not None:
                actor = idle.pop()
                running[getattr(actor, method).remote(*task[1])] = (task[0], actor)
            if not running:
                return
            (finished,), _ = ray.wait(list(running), num_returns=1)
            key, actor = running.pop(finished)
            idle.append(actor)
            try:
                result = ray.get(finished)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, UserError) else error from None
            yield key, result

    def close(self) -> None:
        """End the workers and, where it was started here, Ray; memory and GPUs are free afterwards."""
        if self._actors:
            import ray

            for actor in self._actors:
                ray.kill(actor)
            self._actors = []
            ray.shutdown()

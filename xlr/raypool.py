"""Workers as Ray actors, fed from one plan. The only module that imports ray.

Ray restarts an actor that dies and runs its task again; results come back as they finish, each with its key.
"""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from xlr.config import ModelConfig, RayConfig
from xlr.errors import UserError
from xlr.launch import ALLOCATOR

_RESTARTS = 3
_CPUS_BESIDE_A_GPU = 4


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
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        for name, value in ALLOCATOR.items():
            os.environ.setdefault(name, value)  # for the workers, which inherit it
        if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        import ray

        address = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {}
        if not address:
            local = {"_node_ip_address": "127.0.0.1", "include_dashboard": self._settings.dashboard}
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                **local,
            )
        except ConnectionError as error:
            raise UserError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there; start one, or unset RAY_ADDRESS "
                "to use this machine"
            ) from error
        self._actors = self._create_actors(ray)

    def _create_actors(self, ray: Any) -> list[Any]:
        there = ray.cluster_resources()
        cpus, gpus = int(there.get("CPU", 1)), there.get("GPU", 0)
        gpus_each = self._settings.gpus_per_actor
        if gpus_each is None:
            gpus_each = 1.0 if gpus else 0.0
        largest_node = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
        cpus_each = self._settings.cpus_per_actor or (
            min(_CPUS_BESIDE_A_GPU, largest_node) if gpus_each else largest_node
        )
        most = int(gpus / gpus_each) if gpus_each else max(1, cpus // cpus_each)
        count = self._settings.actors or most
        if gpus_each and count > most:
            raise UserError(
                f"ray.actors: {count} actors of {gpus_each:g} GPUs do not fit {gpus:g} GPUs; "
                "lower ray.actors or ray.gpus_per_actor"
            )
        if count * cpus_each > cpus:
            raise UserError(
                f"ray.actors: {count} actors of {cpus_each} CPUs do not fit {cpus} CPUs; "
                "lower ray.actors or ray.cpus_per_actor"
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

            self._actors = []
            ray.shutdown()

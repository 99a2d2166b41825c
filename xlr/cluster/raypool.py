"""Workers as Ray actors, fed from one plan. The only module that imports ray.

Ray chooses their nodes and tells when one is lost; results come back as they finish, each with its key.
"""

import logging
import math
import os
import secrets
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xlr import progress
from xlr.config import GenerateConfig, ModelConfig, RayConfig
from xlr.errors import UserError
from xlr.progress import Tally
from xlr.training.launcher import ALLOCATOR

_LOSSES = 3  # workers that one task may cost, and starts that may fail, before it is a fault
_LOOK_SECONDS = 10  # between looks at which nodes there are and which tasks take too long
_START_SECONDS = 1800  # without any worker
_SLOW_LOAD_SECONDS = 300  # 16 GB at 50 MB/s
_JOIN_SECONDS = 300  # for all nodes of an allocation
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
        slots = [_gpu_slots(gpus, gpus_each) for _, gpus in nodes]
        fair = min((cpus // slot for (cpus, _), slot in zip(nodes, slots, strict=True) if slot), default=1)
        cpus_each = settings.cpus_per_actor or max(1, min(_CPUS_BESIDE_A_GPU, fair))
    else:
        wanted = -(-(settings.actors or 1) // len(nodes))  # actors a node
        cpus_each = settings.cpus_per_actor or max(1, max(cpus for cpus, _ in nodes) // wanted)
    most = room(nodes, cpus_each, gpus_each)
    count = settings.actors or max(most, 1)
    if count > most:
        cpus, gpus = (sum(column) for column in zip(*nodes, strict=True))
        raise UserError(
            f"ray.actors: {count} actors of {cpus_each} CPUs and {gpus_each:g} GPUs do not fit a cluster of {cpus} "
            f"CPUs and {gpus} GPUs, which holds {most}; lower ray.actors, ray.cpus_per_actor or ray.gpus_per_actor"
        )
    return cpus_each, gpus_each, count


def with_tensor_parallelism(nodes: Sequence[tuple[int, int]], settings: RayConfig, gpus_each: int) -> RayConfig:
    """The settings of actors that hold an engine over several whole GPUs of their node, where there are GPUs.

    Raises:
        UserError: no node has as many.
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
    """How many actors of this size fit the nodes."""
    return sum(
        min(cpus // cpus_each, _gpu_slots(gpus, gpus_each) if gpus_each else cpus // cpus_each) for cpus, gpus in nodes
    )


def _gpu_slots(gpus: int, gpus_each: float) -> int:
    """Actors that a node's GPUs hold; a fraction of a GPU never spans two."""
    return int(gpus / gpus_each) if gpus_each >= 1 else gpus * int(1 / gpus_each)


@dataclass(frozen=True)
class _Call:
    """A task that an actor is at."""

    actor: Any
    key: Any
    begun: float


class Pool:
    """Workers on a Ray instance of their own, or on the cluster that RAY_ADDRESS names.

    A local instance asks for a token that only this process and its children know, listens on loopback and has
    no dashboard unless asked for. Starts at the first `map`, on a cluster when the nodes that XLR_RAY_NODES names have
    joined it; ends with `close`.
    """

    def __init__(self, settings: RayConfig, model: ModelConfig, generate: GenerateConfig):
        self._settings = settings
        self._model = model
        self._generate = generate
        self._vllm: bool | None = None  # whether the workers are vLLM's, once there is a Ray
        self._size = (0, 0.0)  # CPUs and GPUs of an actor
        self._nodes: dict[Any, str] = {}  # actor -> the name of its node
        self._tallies: dict[Any, Tally] = {}  # actor -> what it did in this map, those that were lost included
        self._starting: dict[Any, Any] = {}  # the call that answers once an actor has started -> the actor
        self._failed_starts = 0  # one after the other

    def start(self) -> None:
        """Start Ray, or join the cluster.

        Raises:
            UserError: the cluster does not answer, or the actors do not fit it.
            RuntimeError: nodes of the allocation did not join.
        """
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
            _knock(address)
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
        except (OSError, ray.exceptions.RayError, RuntimeError) as error:
            if not address:
                raise
            raise UserError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there ({str(error).strip().splitlines()[0]}); "
                "start one, give its token in RAY_AUTH_TOKEN_PATH, or unset RAY_ADDRESS to use this machine"
            ) from error
        signal.signal(signal.SIGTERM, handler)
        _wait_for_nodes(ray, os.environ.get("XLR_RAY_NODES", "").split())
        self._choose_kind(ray, "score")

    def _choose_kind(self, ray: Any, method: str) -> None:
        """Settle which workers a method needs; those of the other kind, who hold the same GPUs' memory, are ended."""
        vllm = method == "sample" and self._generate.backend == "vllm"
        if vllm != self._vllm:
            self._end_actors(ray)
            nodes, settings = _alive(ray), self._settings
            if vllm:
                settings = with_tensor_parallelism(nodes, settings, self._generate.tensor_parallel_size)
            cpus_each, gpus_each, _ = plan_actors(nodes, settings)
            self._vllm, self._size = vllm, (cpus_each, gpus_each)

    def _add_actors(self, ray: Any) -> None:
        """Start the workers that are missing: those lost, and those that nodes which joined have room for."""
        cpus_each, gpus_each = self._size
        wanted = self._settings.actors or max(room(_alive(ray), cpus_each, gpus_each), 1)
        # Ray would restart a lost worker by itself, but keep its task for it until a node has room again.
        worker, arguments = self._kind()
        remote = ray.remote(num_cpus=cpus_each, num_gpus=gpus_each)(worker)
        threads = None if gpus_each else cpus_each
        for _ in range(wanted - len(self._nodes) - len(self._starting)):
            actor = remote.remote(threads, *arguments)
            self._starting[actor.node.remote()] = actor

    def _kind(self) -> tuple[Any, tuple[Any, ...]]:
        """The workers' class and, beside its threads, its arguments."""
        from xlr.model.vllmsampler import VllmSampler
        from xlr.model.worker import Worker

        model, generate = self._model, self._generate
        if self._vllm:
            return VllmSampler, (model.dtype, generate.tensor_parallel_size, generate.gpu_memory_utilization)
        models_kept = 1 if self._settings.one_model_at_a_time else 2
        return Worker, (model.dtype, model.attn_implementation, models_kept)

    def _note_start(self, ray: Any, reference: Any) -> list[Any]:
        """The actor that has started, or nothing if its node was lost meanwhile."""
        actor = self._starting.pop(reference)
        try:
            self._nodes[actor] = ray.get(reference)
            self._tallies[actor] = self._tally(actor)
            self._failed_starts = 0
        except ray.exceptions.RayActorError as error:
            self._failed_starts += 1
            if self._failed_starts == _LOSSES:
                raise RuntimeError(f"{_LOSSES} workers failed to start") from error
            return []
        return [actor]

    def _tally(self, actor: Any) -> Tally:
        cpus, gpus = self._size
        return Tally(self._nodes[actor], cpus=cpus, gpus=gpus)

    def _note_loss(self, ray: Any, actor: Any) -> None:
        progress.console.print(f"  a worker on {self._nodes.pop(actor)} was lost; what it was at is done again")
        self._tallies[actor].lost = True
        ray.kill(actor)  # it may be out of reach and still hold its place

    @property
    def workers(self) -> list[Tally]:
        """What each worker of the present `map`, or the last, did in it."""
        return list(self._tallies.values())

    def map(self, method: str, tasks: Mapping[Any, tuple[Any, ...]]) -> Iterator[tuple[Any, Any]]:
        """Call a worker's method once a task and yield `(key, result)` as results come.

        Tasks are handed out in order, one to each worker that is free. The task of a worker that dies, alone or with
        its node, or that is at it for more than `ray.task_minutes`, is given to another; nodes that join are used.

        Raises:
            UserError: a worker's own, for example about a model it cannot open; it names the node.
            RuntimeError: one task cost several workers, or none can start.
        """
        if self._vllm is None:
            self.start()
        import ray

        self._choose_kind(ray, method)
        waiting = deque(tasks)
        self._tallies = {actor: self._tally(actor) for actor in self._nodes}
        idle = list(self._nodes)
        running: dict[Any, _Call] = {}
        lost: Counter[Any] = Counter()
        looked, served = -math.inf, time.monotonic()

        def hand_out() -> None:
            while idle and waiting:
                actor, key = idle.pop(), waiting.popleft()
                running[actor.run.remote(method, *tasks[key])] = _Call(actor, key, time.monotonic())

        while waiting or running:
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                served = looked if self._nodes else served
                if looked - served > _START_SECONDS:
                    raise RuntimeError(f"no worker could start within {_START_SECONDS} s: no node has room for one")
                self._add_actors(ray)
                self._end_overdue(ray, running.values())
            hand_out()
            finished, _ = ray.wait([*running, *self._starting], num_returns=1, timeout=_LOOK_SECONDS)
            for reference in finished:
                if reference in self._starting:
                    idle += self._note_start(ray, reference)
                    continue
                call = running.pop(reference)
                try:
                    answer = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, UserError):
                        raise UserError(f"{error.cause} (on node {self._nodes[call.actor]})") from error
                    raise error from None
                except ray.exceptions.RayActorError as error:
                    lost[call.key] += 1
                    if lost[call.key] == _LOSSES:
                        raise RuntimeError(f"{_LOSSES} workers were lost at one task, {method} {call.key}") from error
                    self._note_loss(ray, call.actor)
                    waiting.appendleft(call.key)
                    looked = -math.inf
                else:
                    idle.append(call.actor)
                    hand_out()  # the worker need not wait until the caller is done with the result
                    self._count(call.actor, answer)
                    yield call.key, answer.result

    def _count(self, actor: Any, answer: Any) -> None:
        tally = self._tallies[actor]
        tally.tasks += 1
        tally.load_seconds += answer.load_seconds
        tally.compute_seconds += answer.compute_seconds
        tally.splits += answer.splits
        if answer.load_seconds > _SLOW_LOAD_SECONDS:
            progress.console.print(
                f"  opening models on {tally.node} took {progress.duration(answer.load_seconds)}: is their folder on a "
                "slow file system there?"
            )

    def _end_overdue(self, ray: Any, calls: Iterable[_Call]) -> None:
        """End workers that hang, so that their tasks are given to others."""
        for call in calls:
            if time.monotonic() - call.begun > 60 * self._settings.task_minutes:
                progress.console.print(
                    f"  a worker on {self._nodes[call.actor]} is at one task for more than ray.task_minutes="
                    f"{self._settings.task_minutes:g}; it is ended"
                )
                ray.kill(call.actor)

    def close(self) -> None:
        """End the workers and, where it was started here, Ray; memory and GPUs are free afterwards."""
        if self._vllm is not None:
            import ray

            self._end_actors(ray)
            self._vllm = None
            ray.shutdown()

    def _end_actors(self, ray: Any) -> None:
        for actor in [*self._nodes, *self._starting.values()]:
            ray.kill(actor)
        self._nodes, self._starting = {}, {}


def _knock(address: str | None) -> None:
    """Ask whether anybody listens at a cluster's address: Ray itself may wait for most of ten minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = (address or "").rpartition(":")
    if port.isdigit() and "/" not in host:  # else a local instance, or a name of Ray's own such as auto
        socket.create_connection((host, int(port)), timeout=_LOOK_SECONDS).close()


def _wait_for_nodes(ray: Any, names: Sequence[str]) -> None:
    """Until all nodes of an allocation have joined the cluster.

    Raises:
        RuntimeError: some did not; it names them.
    """
    begun = time.monotonic()
    while absent := set(names) - {node["NodeName"] for node in ray.nodes() if node["Alive"]}:
        if time.monotonic() - begun > _JOIN_SECONDS:
            raise RuntimeError(f"no Ray within {_JOIN_SECONDS} s on {', '.join(sorted(absent))}")
        time.sleep(0.5)


def _alive(ray: Any) -> list[tuple[int, int]]:
    """CPUs and GPUs of each node of the cluster."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in resources]

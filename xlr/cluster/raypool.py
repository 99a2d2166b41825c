"""Workers as Ray actors that compute one list of tasks. The only module that imports ray.

Ray chooses their nodes and reports when one is lost. Results come back as they finish, each with its task's key.
"""

import importlib.util
import logging
import math
import os
import secrets
import signal
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from xlr import detection
from xlr.cluster import rayaddress
from xlr.cluster.drivermemory import return_freed_memory
from xlr.cluster.environment import ALLOCATOR
from xlr.cluster.raynodes import alive, in_safe_folder, kinds_of_gpus, wait_for_nodes
from xlr.cluster.remoteworker import RemoteWorker
from xlr.cluster.scratch import PrivateFolder
from xlr.cluster.sizing import plan_actors, room, with_tensor_parallelism
from xlr.errors import UserError
from xlr.foreign.modelfiles import reason
from xlr.model import fused
from xlr.model.precision import precision
from xlr.packing.layout import default_attention
from xlr.records import DType, SampleTask, Task
from xlr.settings.config import RayConfig
from xlr.settings.generateconfig import GenerateConfig
from xlr.settings.modelconfig import ModelConfig
from xlr.terminal.console import console, duration
from xlr.terminal.progress import Tally
from xlr.versions import DETECTORS, FUSED, LIBRARIES, VLLM, require_same, versions

_LOSSES = 3  # workers that one task may lose, and starts that may fail in a row, before xlr gives up
_LOOK_SECONDS = 10  # between checks for new nodes and for tasks that take too long
_START_SECONDS = 1800  # without any worker, before xlr gives up
_SLOW_LOAD_SECONDS = 300  # 16 GB at 50 MB/s

# Without this variable, Ray replaces the loopback address by the machine's own and listens on all interfaces.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_LOCAL = {"_node_ip_address": "127.0.0.1"}


@dataclass
class _Call:
    """A task that a worker has been given. It computes its tasks in turn."""

    actor: Any
    key: Any
    task: Task
    begun: float | None = None
    """When the worker began to compute it, or will have by now; None while the one before it is computed."""


class Pool:
    """Workers on a local Ray instance, or on the cluster that RAY_ADDRESS names.

    A local instance requires a token that only this process and its children know, listens on the loopback interface,
    writes to a private temporary folder, and has no dashboard unless asked for. Ray starts with the first task and ends
    with `close`. On a cluster the pool waits until all nodes in XLR_RAY_NODES have joined. Workers import nothing from
    the current folder.
    """

    def __init__(self, settings: RayConfig, model: ModelConfig, generate: GenerateConfig):
        self._settings = settings
        self._model = model
        self._generate = generate
        self._vllm: bool | None = None  # whether the workers run vLLM; None while Ray is not running
        self._gpus = ""  # cuda, with the kinds of GPUs that the nodes have; empty if there are none
        self._size = (0, 0.0)  # CPUs and GPUs of a worker
        self._nodes: dict[Any, str] = {}  # actor -> the name of its node
        self._tallies: dict[Any, Tally] = {}  # actor -> what it did in this `map`; includes lost actors
        self._starting: dict[Any, Any] = {}  # the call that returns once an actor has started -> the actor
        self._failed_starts = 0  # in a row
        self._folder: PrivateFolder | None = None  # of a local instance

    def start(self) -> None:
        """Start Ray, or join the cluster.

        Raises:
            UserError: the cluster does not answer, the workers do not fit it, or the dashboard is not installed.
            RuntimeError: nodes of the allocation did not join.
        """
        address = rayaddress.cluster()
        return_freed_memory()
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        for name, value in ALLOCATOR.items():
            os.environ.setdefault(name, value)  # the workers inherit it
        local: dict[str, Any] = {}
        if not address and self._settings.dashboard and importlib.util.find_spec("aiohttp_cors") is None:
            raise UserError('ray.dashboard: not installed; run `pip install "ray[default]"`, or set it to false')
        if not address:  # a cluster has a token already, and Ray knows where users keep it
            os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray keeps the first one of a process
            os.environ.update(_LOOPBACK, RAY_AUTH_MODE="token")
            self._folder = PrivateFolder()
            temporary = str(self._folder.path / "ray")  # Ray makes it accessible to all, but not the folder around it
            local = {"_temp_dir": temporary, "include_dashboard": self._settings.dashboard, **_LOCAL}
        import ray

        handler = signal.getsignal(signal.SIGTERM)  # Ray replaces it
        try:
            rayaddress.require_listener(address)
            with in_safe_folder():
                ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
        except (OSError, ray.exceptions.RayError, RuntimeError, ValueError) as error:
            if not address:
                raise
            raise UserError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason(error)}); "
                "start one, give its token in RAY_AUTH_TOKEN_PATH, or unset RAY_ADDRESS to use this machine"
            ) from error
        signal.signal(signal.SIGTERM, handler)
        wait_for_nodes(ray, os.environ.get("XLR_RAY_NODES", "").split())
        self._gpus = kinds_of_gpus(ray)
        self._choose_kind(ray, vllm=False)

    def precision(self, dtype: DType) -> str:
        """The precision of workers that score: float32 or bfloat16."""
        return precision(dtype, self.on_gpus)

    @property
    def on_gpus(self) -> bool:
        """Whether workers of transformers compute on GPUs."""
        return self._on_gpus(vllm=False)

    def conditions(self, task: Task) -> dict[str, str | None]:
        """Conditions that affect the numbers of such a task: device, precision, implementation, library versions.

        Raises:
            UserError: `model.fused_operations` is true, but the workers cannot fuse operations.
        """
        vllm = isinstance(task, SampleTask) and self._generate.backend == "vllm"
        on_gpus = self._on_gpus(vllm)
        found: dict[str, str | None] = {
            "device": self._gpus if on_gpus else "cpu",
            "precision": precision(self._model.dtype if isinstance(task, SampleTask) else task.dtype, on_gpus),
        }
        if vllm:
            return found | versions((*LIBRARIES, *VLLM))
        found |= fused.conditions(self._model.fused_operations, on_gpus)
        attention = self._model.attn_implementation
        if isinstance(task, SampleTask):
            return found | {"model.attn_implementation": default_attention(attention)} | versions(LIBRARIES)
        detectors = detection.libraries(task.expected)  # scored rows hold the detected language
        return found | {"model.attn_implementation": attention} | versions((*LIBRARIES, *detectors))

    def _on_gpus(self, vllm: bool) -> bool:
        """Whether workers of a kind compute on GPUs. vLLM takes them whatever ray.gpus_per_actor says."""
        if self._vllm is None:
            self.start()
        return bool(self._gpus) and (vllm or self._settings.gpus_per_actor != 0)

    def _choose_kind(self, ray: Any, vllm: bool) -> None:
        """Choose the kind of worker, and end workers of the other kind: they hold the memory of the same GPUs."""
        if vllm == self._vllm:
            return
        self._end_actors(ray)
        nodes, settings = alive(ray), self._settings
        if vllm:
            settings = with_tensor_parallelism(nodes, settings, self._generate.tensor_parallel_size)
        self._vllm, self._size = vllm, plan_actors(nodes, settings)

    def _add_actors(self, ray: Any) -> None:
        """Start the workers that are missing: replacements of lost ones, and those that new nodes have room for."""
        cpus_each, gpus_each = self._size
        wanted = self._settings.actors or max(room(alive(ray), cpus_each, gpus_each), 1)
        # Ray could restart a lost worker by itself, but would keep its task for it until a node has room again.
        remote = ray.remote(num_cpus=cpus_each, num_gpus=gpus_each)(RemoteWorker)
        threads = None if gpus_each else cpus_each
        for _ in range(wanted - len(self._nodes) - len(self._starting)):
            actor = remote.remote(self._vllm, threads, *self._arguments())
            self._starting[actor.node.remote()] = actor

    def _arguments(self) -> tuple[Any, ...]:
        """The arguments of a worker of this kind after the number of threads."""
        model, generate = self._model, self._generate
        if self._vllm:
            return model.dtype, generate.tensor_parallel_size, generate.gpu_memory_utilization, generate.max_num_seqs
        models_kept = 1 if self._settings.one_model_at_a_time else 2
        on_gpu = self._size[1] > 0
        return model.dtype, model.attn_implementation, models_kept, on_gpu, model.fused_operations

    def _note_start(self, ray: Any, reference: Any) -> list[Any]:
        """The actor that has started, or nothing if its node was lost meanwhile.

        Raises:
            RuntimeError: several starts failed in a row.
        """
        actor = self._starting.pop(reference)
        try:
            node, libraries = ray.get(reference)
        except ray.exceptions.RayActorError as error:
            self._failed_starts += 1
            if self._failed_starts == _LOSSES:
                raise RuntimeError(f"{_LOSSES} workers failed to start") from error
            return []
        require_same(node, libraries, versions((*LIBRARIES, *VLLM, *FUSED, *DETECTORS)))
        self._nodes[actor] = node
        self._tallies[actor] = self._tally(actor)
        self._failed_starts = 0
        return [actor]

    def _tally(self, actor: Any) -> Tally:
        cpus, gpus = self._size
        return Tally(self._nodes[actor], cpus=cpus, gpus=gpus)

    def _note_loss(self, ray: Any, actor: Any) -> None:
        console.print(f"  lost a worker on {self._nodes.pop(actor)}; another one computes its task")
        self._tallies[actor].lost = True
        ray.kill(actor)  # it may only be unreachable, and still hold its GPU

    @property
    def workers(self) -> list[Tally]:
        """What each worker did in the running `map`, or in the last one."""
        return list(self._tallies.values())

    def map(self, tasks: Iterable[tuple[Any, Task]]) -> Iterator[tuple[Any, Any]]:
        """Compute all tasks, of one kind, given with their keys; yield `(key, result)` as results come.

        Tasks are handed out in order, and taken from `tasks` when a worker is free. A worker that scores gets a second
        task while it computes the first, so that it never waits for this process; sampling takes minutes a task, so
        workers get one at a time. If a worker dies, alone or with its node, or computes one task for more than
        `ray.task_minutes`, another worker gets its tasks. Nodes that join are used.

        Raises:
            UserError: raised by a worker, for example about a model it cannot open; names the node.
            RuntimeError: several workers died at one task, or none can start.
        """
        remaining = iter(tasks)
        first = next(remaining, None)
        if first is None:
            self._tallies = {}
            return
        if self._vllm is None:
            self.start()
        import ray

        sampling = isinstance(first[1], SampleTask)
        self._choose_kind(ray, vllm=sampling and self._generate.backend == "vllm")
        self._tallies = {actor: self._tally(actor) for actor in self._nodes}
        yield from _Round(self, ray, chain([first], remaining), 1 if sampling else 2).results()

    def _count(self, actor: Any, answer: Any) -> None:
        tally = self._tallies[actor]
        tally.tasks += 1
        tally.load_seconds += answer.load_seconds
        tally.compute_seconds += answer.compute_seconds
        tally.splits += answer.splits
        tally.peak_memory = max(tally.peak_memory, answer.peak_memory)
        if answer.load_seconds > _SLOW_LOAD_SECONDS:
            console.print(
                f"  loading models on {tally.node} took {duration(answer.load_seconds)}: is their folder on a slow "
                "file system there?"
            )

    def _end_overdue(self, ray: Any, calls: Sequence[_Call]) -> None:
        """Kill workers that hang, so that others get their tasks."""
        for call in calls:
            if call.begun is not None and time.monotonic() - call.begun > 60 * self._settings.task_minutes:
                console.print(
                    f"  killed a worker on {self._nodes[call.actor]}: one task took more than ray.task_minutes="
                    f"{self._settings.task_minutes:g}"
                )
                ray.kill(call.actor)

    def close(self) -> None:
        """End the workers and a local Ray instance; their memory and GPUs are free afterwards."""
        if self._vllm is not None:
            import ray

            self._end_actors(ray)
            self._vllm = None
            ray.shutdown()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def _end_actors(self, ray: Any) -> None:
        for actor in [*self._nodes, *self._starting.values()]:
            ray.kill(actor)
        self._nodes, self._starting = {}, {}


class _Round:
    """The state of one `map` of a pool: waiting tasks, running tasks, workers that can take one.

    Args:
        tasks: tasks with their keys, in the order in which they are handed out.
        depth: how many tasks a worker holds, with the one that it computes.
    """

    def __init__(self, pool: Pool, ray: Any, tasks: Iterator[tuple[Any, Task]], depth: int):
        self._pool = pool
        self._ray = ray
        self._tasks = tasks
        self._depth = depth
        self._waiting: deque[tuple[Any, Task]] = deque()  # tasks of lost workers, and the next one where it is known
        self._free = deque([*pool._nodes] * depth)  # a worker as often as it can take a task; each once, then again
        self._running: dict[Any, _Call] = {}
        self._losses: Counter[Any] = Counter()
        self._looked = -math.inf
        self._had_workers = time.monotonic()

    def results(self) -> Iterator[tuple[Any, Any]]:
        """See `Pool.map`."""
        while self._running or self._is_waiting():
            if time.monotonic() - self._looked > _LOOK_SECONDS:
                self._look()
            self._hand_out()
            calls = [*self._running, *self._pool._starting]
            for reference in self._ray.wait(calls, num_returns=1, timeout=_LOOK_SECONDS)[0]:
                if reference in self._pool._starting:
                    self._free.extendleft(self._pool._note_start(self._ray, reference) * self._depth)
                else:
                    yield from self._finish(reference)

    def _look(self) -> None:
        """Replace lost workers, use new nodes, kill workers that hang."""
        self._looked = time.monotonic()
        if self._pool._nodes:
            self._had_workers = self._looked
        if self._looked - self._had_workers > _START_SECONDS:
            raise RuntimeError(f"no worker could start within {_START_SECONDS} s: no node has room for one")
        self._pool._add_actors(self._ray)
        self._pool._end_overdue(self._ray, list(self._running.values()))

    def _is_waiting(self) -> bool:
        """Whether a task waits for a worker. It may take a moment to plan the next one."""
        if not self._waiting:
            self._waiting.extend(islice(self._tasks, 1))
        return bool(self._waiting)

    def _hand_out(self) -> None:
        while self._free and self._is_waiting():
            actor, (key, task) = self._free.popleft(), self._waiting.popleft()
            self._running[actor.run.remote(task)] = _Call(actor, key, task)
            self._begin(actor)

    def _begin(self, actor: Any) -> None:
        """Note that a worker computes the first of its tasks from now on, unless it did before."""
        first = next((call for call in self._running.values() if call.actor is actor), None)
        if first is not None and first.begun is None:
            first.begun = time.monotonic()

    def _finish(self, reference: Any) -> Iterator[tuple[Any, Any]]:
        """The result of a call that has ended; nothing if its worker was lost."""
        call, errors = self._running.pop(reference), self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(f"{error.cause} (on node {self._pool._nodes[call.actor]})") from error
            raise error from None
        except errors.RayActorError as error:
            self._give_back(call, error)
        else:
            self._free.append(call.actor)
            self._begin(call.actor)
            self._hand_out()  # before the caller works on the result, so that the worker does not wait for it
            self._pool._count(call.actor, answer)
            yield call.key, answer.result

    def _give_back(self, call: _Call, error: Exception) -> None:
        """Put a task of a lost worker first in the queue.

        Raises:
            RuntimeError: several workers were lost while they computed it.
        """
        self._losses[call.key] += call.begun is not None
        if self._losses[call.key] == _LOSSES:
            raise RuntimeError(f"{_LOSSES} workers were lost while computing task {call.key}") from error
        if call.actor in self._pool._nodes:
            self._pool._note_loss(self._ray, call.actor)
        self._free = deque(actor for actor in self._free if actor is not call.actor)
        self._waiting.appendleft((call.key, call.task))
        self._looked = -math.inf

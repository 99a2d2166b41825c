"""How the pool hands out tasks: in order, two at a time where asked, again if a worker dies."""

import contextlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xlr.cluster import raypool
from xlr.cluster.raypool import _LOSSES, _Round


@dataclass(eq=False)
class Call:
    """What Ray returns for a task that a worker was given."""

    worker: "Worker"
    task: Any


@dataclass(eq=False)
class Worker:
    """Computes its tasks in turn. It dies at some tasks, and then answers nothing any more."""

    name: str
    deadly: Counter[Any]
    queue: deque[Call] = field(default_factory=deque)
    most: int = 0
    dead: bool = False

    @property
    def run(self) -> Any:
        return SimpleNamespace(remote=self._take)

    def _take(self, task: Any) -> Call:
        call = Call(self, task)
        self.queue.append(call)
        self.most = max(self.most, len(self.queue))
        return call


class WorkerLostError(Exception):
    pass


class TaskError(Exception):
    cause: Exception


class Ray:
    """Finishes the oldest task of one worker after another.

    The real module is not imported here: it reads its token when it is, and other tests of this process set another.
    """

    exceptions = SimpleNamespace(RayActorError=WorkerLostError, RayTaskError=TaskError)

    def __init__(self) -> None:
        self.turn = 0

    def wait(self, calls: Sequence[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        self.turn += 1
        call = calls[self.turn % len(calls)]
        return [call if call.worker.dead else call.worker.queue[0]], []

    def get(self, call: Call) -> Any:
        worker = call.worker
        if not worker.dead and worker.deadly[call.task]:
            worker.dead = True
            worker.deadly[call.task] -= 1  # not those of tasks that waited for the dead worker
        if worker.dead:
            raise WorkerLostError
        worker.queue.popleft()
        return SimpleNamespace(result=2 * call.task)


class Pool:
    """A pool that replaces a lost worker at once."""

    def __init__(self, workers: int, deadly: Iterable[int]):
        self.deadly = Counter(deadly)
        self.all: list[Worker] = []
        self._nodes: dict[Worker, str] = {}
        self._starting: dict[Any, Any] = {}
        for _ in range(workers):
            self.start()

    def start(self) -> Worker:
        worker = Worker(str(len(self.all)), self.deadly)
        self.all.append(worker)
        self._nodes[worker] = "node"
        return worker

    def _note_loss(self, _ray: Any, worker: Worker) -> None:
        del self._nodes[worker]
        self.round._free.extend([self.start()] * self.round._depth)

    def _add_actors(self, _ray: Any) -> None:
        pass

    def _end_overdue(self, _ray: Any, calls: Sequence[Any]) -> None:
        for worker in self._nodes:
            begun = [call.begun is not None for call in calls if call.actor is worker]
            assert begun == sorted(begun, reverse=True)
            assert sum(begun) <= 1  # the others wait in its queue

    def _count(self, _worker: Worker, _answer: Any) -> None:
        pass

    def map(self, tasks: int, depth: int) -> dict[int, int]:
        self.round = _Round(self, Ray(), ((number, number) for number in range(tasks)), depth)  # type: ignore[arg-type, misc]
        found = list(self.round.results())
        assert len(found) == len(dict(found))
        return dict(found)


@example(workers=1, tasks=2, depth=2, deadly=[0, 1, 1, 1])
@given(
    workers=st.integers(1, 4),
    tasks=st.integers(1, 20),
    depth=st.integers(1, 2),
    deadly=st.lists(st.integers(0, 19), max_size=4),
)
def test_every_task_is_computed_once_whatever_dies(workers: int, tasks: int, depth: int, deadly: list[int]) -> None:
    pool = Pool(workers, deadly)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raypool, "_LOOK_SECONDS", -1)  # look before every step
        hopeless = any(deadly.count(task) >= _LOSSES for task in set(deadly) & set(range(tasks)))
        expected = pytest.raises(RuntimeError, match="workers were lost") if hopeless else contextlib.nullcontext()
        with expected:
            assert pool.map(tasks, depth) == {number: 2 * number for number in range(tasks)}
    assert max(worker.most for worker in pool.all) <= depth


def test_a_task_that_only_waited_for_a_lost_worker_is_not_blamed() -> None:
    """Task 1 always waits behind the deadly task 0."""
    pool = Pool(1, [0, 0])
    assert pool.map(2, 2) == {0: 0, 1: 2}
    assert pool.round._losses[0] == 2
    assert pool.round._losses[1] == 0


def test_each_worker_gets_a_task_before_one_gets_two() -> None:
    pool = Pool(3, [])
    pool.map(3, 2)
    assert [worker.most for worker in pool.all] == [1, 1, 1]

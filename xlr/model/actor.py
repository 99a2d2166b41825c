"""What every worker of the pool has beside its models: its machine's name, and where its time goes."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch

from xlr.errors import UserError
from xlr.records import Task

Item = TypeVar("Item")
Result = TypeVar("Result")
Halves: TypeAlias = tuple[Sequence[Item], Sequence[Item]] | None


@dataclass(frozen=True)
class Answer:
    """A method's result; seconds spent opening models and on all the rest; how often memory was short."""

    result: Any
    load_seconds: float
    compute_seconds: float
    splits: int


class Actor:
    """A worker's base."""

    def __init__(self) -> None:
        self._load_seconds = 0.0
        self._splits = 0

    def node(self) -> str:
        """The name of the machine."""
        return socket.gethostname()

    def compute(self, task: Task) -> Any:
        """The result of a task, which each kind of worker computes in its own way."""
        raise NotImplementedError

    def run(self, task: Task) -> Answer:
        """Compute a task and count what it took."""
        begun, loaded, splits = time.monotonic(), self._load_seconds, self._splits
        result = self.compute(task)
        load_seconds = self._load_seconds - loaded
        return Answer(result, load_seconds, time.monotonic() - begun - load_seconds, self._splits - splits)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Inside, a model is opened."""
        begun = time.monotonic()
        yield
        self._load_seconds += time.monotonic() - begun

    def in_halves(
        self,
        compute: Callable[[Sequence[Item]], list[Result]],
        items: Sequence[Item],
        halves: Callable[[Sequence[Item]], Halves[Item]],
        remedy: str,
    ) -> list[Result]:
        """`compute(items)`, in halves where a GPU's memory does not hold what all need at once.

        Args:
            halves: cuts items in two whose results follow one another; None where nothing is left to cut.
            remedy: what to do then.

        Raises:
            UserError: it does not hold the smallest part.
        """
        try:
            return compute(items)
        except torch.OutOfMemoryError as error:
            parts = halves(items)
            if parts is None:
                reason = str(error).split(". ")[0]
                raise UserError(
                    f"memory is short even for the smallest piece of a batch ({reason}); {remedy}"
                ) from error
        # Outside the handler, whose exception keeps the failed attempt's tensors alive.
        torch.cuda.empty_cache()
        self._splits += 1
        return [result for part in parts for result in self.in_halves(compute, part, halves, remedy)]


def list_halves(items: Sequence[Item]) -> Halves[Item]:
    """The first and the second half of several items."""
    middle = len(items) // 2
    return (items[:middle], items[middle:]) if middle else None

"""The base class of the pool's workers: runs tasks, measures their time, splits batches that run out of memory."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch

from xlr.errors import UserError
from xlr.model.gpus import peak_memory
from xlr.records import Task
from xlr.versions import DETECTORS, FUSED, LIBRARIES, VLLM, versions

Item = TypeVar("Item")
Result = TypeVar("Result")
Halves: TypeAlias = tuple[Sequence[Item], Sequence[Item]] | None


@dataclass(frozen=True)
class Answer:
    """The result of a task and what it took.

    `splits` counts how often a batch ran out of memory and was halved. `peak_memory` is that of the process, in bytes.
    """

    result: Any
    load_seconds: float
    compute_seconds: float
    splits: int
    peak_memory: int


class Actor:
    """Base class of the workers."""

    def __init__(self) -> None:
        self._load_seconds = 0.0
        self._splits = 0

    def node(self) -> tuple[str, dict[str, str | None]]:
        """Host name of this worker's machine, and the versions of the libraries there that decide the numbers."""
        return socket.gethostname(), versions((*LIBRARIES, *VLLM, *FUSED, *DETECTORS))

    def compute(self, task: Task) -> Any:
        """Compute a task's result. Each kind of worker implements this."""
        raise NotImplementedError

    def run(self, task: Task) -> Answer:
        """Compute a task and measure its time, splits and memory."""
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        begun, loaded, splits = time.monotonic(), self._load_seconds, self._splits
        result = self.compute(task)
        load_seconds = self._load_seconds - loaded
        seconds = time.monotonic() - begun - load_seconds
        peak = peak_memory(torch.cuda.is_initialized())
        return Answer(result, load_seconds, seconds, self._splits - splits, peak)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count the time inside the block as time spent loading a model."""
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
        """Compute `compute(items)`; if the GPU runs out of memory, compute both halves separately, recursively.

        Args:
            halves: splits items in two; None if they cannot be split. The results of the first half come first.
            remedy: ends the error message: what the user can do.

        Raises:
            UserError: the GPU's memory is too small even for items that cannot be split.
        """
        try:
            return compute(items)
        except torch.OutOfMemoryError as error:
            parts = halves(items)
            if parts is None:
                reason = str(error).split(". ")[0]
                raise UserError(f"out of memory even for the smallest part of a batch ({reason}); {remedy}") from error
        # Not inside the handler: the exception keeps the tensors of the failed attempt alive.
        torch.cuda.empty_cache()
        self._splits += 1
        return [result for part in parts for result in self.in_halves(compute, part, halves, remedy)]


def list_halves(items: Sequence[Item]) -> Halves[Item]:
    """The first and the second half; None for a single item."""
    middle = len(items) // 2
    return (items[:middle], items[middle:]) if middle else None

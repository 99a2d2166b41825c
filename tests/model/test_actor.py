"""The base class of workers: batches that exceed memory are halved, and time is measured."""

import time
from collections.abc import Sequence

import pytest
import torch

from xlr.errors import UserError
from xlr.model.actor import Actor, list_halves
from xlr.records import ScoreTask, Task


def doubled_by_a_gpu_of(most: int) -> tuple[list[int], "Doubler"]:
    """A list that will hold the attempted batch sizes, and a computation that handles at most `most` items at once."""
    tried: list[int] = []
    return tried, Doubler(most, tried)


class Doubler:
    """A fake computation that runs out of memory if it gets more than `most` items."""

    def __init__(self, most: int, tried: list[int]):
        self._most, self._tried = most, tried

    def __call__(self, items: Sequence[int]) -> list[int]:
        self._tried.append(len(items))
        if len(items) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [2 * item for item in items]


@pytest.mark.parametrize(("most", "splits"), [(7, 0), (6, 1), (3, 2), (1, 6)])
def test_a_batch_that_exceeds_memory_is_computed_in_halves(most: int, splits: int) -> None:
    actor = Actor()
    tried, compute = doubled_by_a_gpu_of(most)
    assert actor.in_halves(compute, range(7), list_halves, "") == [0, 2, 4, 6, 8, 10, 12]
    assert actor._splits == splits
    assert sum(size for size in tried if size <= most) == 7


def test_running_out_of_memory_on_a_single_item_is_an_error_with_a_remedy() -> None:
    _, compute = doubled_by_a_gpu_of(0)
    with pytest.raises(UserError, match=r"smallest part of a batch \(CUDA out of memory\); lower generate"):
        Actor().in_halves(compute, range(4), list_halves, "lower generate.max_new_tokens")


def test_loading_models_is_measured_apart_from_computing() -> None:
    class Sleeper(Actor):
        def compute(self, task: Task) -> str:
            with self.loading():
                time.sleep(0.2)
            time.sleep(0.05)
            return "rested"

    answer = Sleeper().run(ScoreTask((), (), "auto"))
    assert answer.result == "rested"
    assert 0.2 <= answer.load_seconds < 0.25
    assert 0.05 <= answer.compute_seconds < 0.2

"""Which examples are computed together, decided from lengths alone and before any worker starts."""

from bisect import bisect_left
from collections.abc import Sequence

Batch = list[int]


def token_budget_batches(lengths: Sequence[int], budget: int, rows: Sequence[int] | None = None) -> list[Batch]:
    """Fill batches with whole examples, longest first, up to a budget of tokens each.

    The plan depends on its arguments alone (ties by position), so the same work is cut the same way
    whatever the number of workers. An example longer than the budget makes a batch of its own.

    Args:
        lengths: tokens of each example; of its longest row where rows are padded.
        budget: tokens of a batch, padding included.
        rows: padded rows of each example; without it examples are packed and nothing is padded.

    Returns:
        Batches of indices; every index once.
    """
    batches: list[Batch] = []
    tokens = width = height = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        cost = tokens + lengths[index] if rows is None else width * (height + rows[index])
        if not batches or cost > budget:
            batches.append([])
            tokens, width, height = 0, lengths[index], 0
        batches[-1].append(index)
        tokens += lengths[index]
        height += rows[index] if rows else 1
    return batches


def even_batches(lengths: Sequence[int], budget: int) -> list[Batch]:
    """As `token_budget_batches`, in no more batches, but of the smallest budget that allows it: none is a mere rest."""
    count = len(token_budget_batches(lengths, budget))
    smallest = bisect_left(range(budget), True, key=lambda less: len(token_budget_batches(lengths, less)) <= count)
    return token_budget_batches(lengths, smallest)


def micro_batches(
    lengths: Sequence[int], budget: int, world_size: int, rows: Sequence[int] | None = None
) -> list[list[Batch]]:
    """Cut one global batch into as many micro-batches for every rank.

    ZeRO-3 gathers weights in collectives that every rank must enter, so all ranks run the same number of
    micro-batches; a rank that has none left gets an empty one.

    Args:
        lengths, budget, rows: as in `token_budget_batches`, for the pairs of the global batch.
        world_size: ranks.

    Returns:
        `[micro-step][rank]` -> indices of pairs; every index once. Batches of similar cost share a micro-step.
    """
    batches = token_budget_batches(lengths, budget, rows)
    while len(batches) % world_size:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        whole = batches[largest]
        half = (len(whole) + 1) // 2
        batches[largest : largest + 1] = [whole[:half], whole[half:]]
    batches.sort(key=lambda batch: (-sum(lengths[i] for i in batch), batch))
    return [batches[start : start + world_size] for start in range(0, len(batches), world_size)]

"""Which examples form a batch. The plan depends on lengths alone and is made before any worker starts."""

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heapreplace
from typing import TypeVar

Batch = list[int]
Item = TypeVar("Item")


def token_budget_batches(lengths: Sequence[int], budget: int, rows: Sequence[int] | None = None) -> list[Batch]:
    """Put examples into batches, longest first, so that no batch exceeds a budget of tokens.

    The plan does not depend on the number of workers; of equally long examples the one with the lower index comes
    first. An example longer than the budget gets its own batch.

    Args:
        lengths: tokens of each example; with padding, tokens of its longest row.
        budget: tokens of a batch, padding included.
        rows: padded rows of each example; None if examples are packed without padding.

    Returns:
        Batches of indices; each index is in exactly one batch.
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
    """Like `token_budget_batches` with the same number of batches, but balanced.

    Uses the smallest budget that still suffices, so no batch is a small remainder.
    """
    batches = token_budget_batches(lengths, budget)
    if (count := len(batches)) == 1:
        return batches
    smallest = bisect_left(range(budget), True, key=lambda less: len(token_budget_batches(lengths, less)) <= count)
    return token_budget_batches(lengths, smallest)


def consecutive(order: Sequence[int], size: int) -> list[Batch]:
    """Divide indices evenly into batches of at most `size`, in their order."""
    count = -(-len(order) // size)
    return [[*order[len(order) * n // count : len(order) * (n + 1) // count]] for n in range(count)]


def dealt(groups: Sequence[Sequence[int]], size: int) -> list[Batch]:
    """Deal groups of indices out to batches like cards, so that each batch gets the same mix in the same order.

    A batch holds about `size` indices, and more than that by less than the largest group.
    """
    count = -(-sum(map(len, groups)) // size)
    hands = [groups[n::count] for n in range(count)]
    return [[index for group in hand for index in group] for hand in hands if hand]


def micro_batches(
    lengths: Sequence[int], budget: int, world_size: int, rows: Sequence[int] | None = None
) -> list[list[Batch]]:
    """Split one global batch into micro-batches, the same number for every rank.

    ZeRO-3 gathers weights in collectives that every rank must enter, so all ranks must run the same number of
    micro-batches. A rank without pairs gets an empty micro-batch.

    The ranks wait for the one with most tokens. So each pair, longest first, goes to the micro-batch that is emptiest
    so far. Source: Graham, "Bounds on multiprocessing timing anomalies" (1969): longest processing time first.

    Args:
        lengths, budget, rows: as in `token_budget_batches`, for the pairs of the global batch.
        world_size: the number of ranks.

    Returns:
        `[micro-step][rank]` -> indices of pairs; each index is in exactly one micro-batch. A micro-batch of several
        pairs is within the budget. Micro-batches with similar numbers of tokens run in the same micro-step.
    """
    if not lengths:
        return []
    least = sum(min(_cost([i], lengths, rows), budget) for i in range(len(lengths)))
    micro_steps = -(-least // (budget * world_size))  # with fewer, no plan is within the budget
    while not _fit(batches := _even(lengths, rows, micro_steps * world_size), lengths, rows, budget):
        micro_steps += 1
    batches.sort(key=lambda batch: (-_cost(batch, lengths, rows), batch))
    return [batches[start : start + world_size] for start in range(0, len(batches), world_size)]


def _even(lengths: Sequence[int], rows: Sequence[int] | None, count: int) -> list[Batch]:
    """Put examples into `count` batches of about equal cost."""
    batches: list[Batch] = [[] for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]  # a heap of costs and numbers of batches
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        cost, number = emptiest[0]
        batches[number].append(index)
        # A batch is as wide as its first example, the longest.
        added = lengths[index] if rows is None else lengths[batches[number][0]] * rows[index]
        heapreplace(emptiest, (cost + added, number))
    return batches


def _fit(batches: Sequence[Batch], lengths: Sequence[int], rows: Sequence[int] | None, budget: int) -> bool:
    return all(len(batch) <= 1 or _cost(batch, lengths, rows) <= budget for batch in batches)


def _cost(batch: Batch, lengths: Sequence[int], rows: Sequence[int] | None) -> int:
    """Tokens of a batch, padding included."""
    if rows is None:
        return sum(lengths[i] for i in batch)
    return max((lengths[i] for i in batch), default=0) * sum(rows[i] for i in batch)


def spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]

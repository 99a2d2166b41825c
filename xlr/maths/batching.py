"""Which examples form a batch. The plan depends on lengths alone and is made before any worker starts."""

from bisect import bisect_left
from collections.abc import Sequence

Batch = list[int]


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
    count = len(token_budget_batches(lengths, budget))
    smallest = bisect_left(range(budget), True, key=lambda less: len(token_budget_batches(lengths, less)) <= count)
    return token_budget_batches(lengths, smallest)


def micro_batches(
    lengths: Sequence[int], budget: int, world_size: int, rows: Sequence[int] | None = None
) -> list[list[Batch]]:
    """Split one global batch into micro-batches, the same number for every rank.

    ZeRO-3 gathers weights in collectives that every rank must enter, so all ranks must run the same number of
    micro-batches. A rank without pairs gets an empty micro-batch.

    Args:
        lengths, budget, rows: as in `token_budget_batches`, for the pairs of the global batch.
        world_size: the number of ranks.

    Returns:
        `[micro-step][rank]` -> indices of pairs; each index is in exactly one micro-batch. Micro-batches with similar
        numbers of tokens run in the same micro-step.
    """
    batches = token_budget_batches(lengths, budget, rows)
    while len(batches) % world_size:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        whole = batches[largest]
        half = (len(whole) + 1) // 2
        batches[largest : largest + 1] = [whole[:half], whole[half:]]
    batches.sort(key=lambda batch: (-sum(lengths[i] for i in batch), batch))
    return [batches[start : start + world_size] for start in range(0, len(batches), world_size)]

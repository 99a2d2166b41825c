import math
from itertools import pairwise, product

from hypothesis import given, settings
from hypothesis import strategies as st

from xlr.maths.batching import consecutive, dealt, even_batches, micro_batches, token_budget_batches

LENGTHS = st.lists(st.integers(1, 40), max_size=30)
BUDGET = st.integers(1, 100)
WORLD_SIZE = st.integers(1, 6)
moderate = settings(max_examples=50, deadline=None)


def cost(batch, lengths) -> int:
    return sum(lengths[i] for i in batch)


def within_budget(batch, lengths, budget) -> bool:
    return cost(batch, lengths) <= budget or len(batch) == 1


@moderate
@given(LENGTHS, BUDGET)
def test_every_index_is_in_exactly_one_batch(lengths, budget):
    batches = token_budget_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)


@moderate
@given(LENGTHS, BUDGET)
def test_only_a_single_long_example_can_exceed_the_budget(lengths, budget):
    assert all(within_budget(batch, lengths, budget) for batch in token_budget_batches(lengths, budget))


@moderate
@given(LENGTHS, BUDGET)
def test_examples_are_ordered_longest_first_and_ties_by_position(lengths, budget):
    order = [index for batch in token_budget_batches(lengths, budget) for index in batch]
    for left, right in pairwise(order):
        assert lengths[left] > lengths[right] or (lengths[left] == lengths[right] and left < right)


@moderate
@given(LENGTHS, BUDGET)
def test_a_batch_is_closed_only_when_the_next_example_does_not_fit(lengths, budget):
    batches = token_budget_batches(lengths, budget)
    for batch, following in pairwise(batches):
        assert cost(batch, lengths) + lengths[following[0]] > budget


@moderate
@given(LENGTHS, BUDGET, st.randoms(use_true_random=False))
def test_the_plan_depends_on_the_lengths_alone(lengths, budget, random):
    batches = token_budget_batches(lengths, budget)
    assert token_budget_batches(tuple(lengths), budget) == batches
    shuffled = random.sample(lengths, len(lengths))
    assert [[shuffled[i] for i in batch] for batch in token_budget_batches(shuffled, budget)] == [
        [lengths[i] for i in batch] for batch in batches
    ]


def test_batches_by_hand():
    assert token_budget_batches([3, 9, 3, 5, 20, 1], 10) == [[4], [1], [3, 0], [2, 5]]
    assert token_budget_batches([], 10) == []


@moderate
@given(LENGTHS, BUDGET)
def test_even_batches_need_no_more_batches_and_no_larger_ones(lengths, budget):
    even, filled = even_batches(lengths, budget), token_budget_batches(lengths, budget)
    assert sorted(index for batch in even for index in batch) == list(range(len(lengths)))
    assert len(even) <= len(filled)
    assert max((cost(batch, lengths) for batch in even), default=0) <= max(
        (cost(batch, lengths) for batch in filled), default=0
    )


def test_even_batches_by_hand():
    assert token_budget_batches([6, 6, 6, 6, 6, 6], 31) == [[0, 1, 2, 3, 4], [5]]
    assert even_batches([6, 6, 6, 6, 6, 6], 31) == [[0, 1, 2], [3, 4, 5]]
    assert even_batches([7, 3], 10) == [[0, 1]]
    assert even_batches([20, 1], 10) == [[0], [1]]


@moderate
@given(LENGTHS, BUDGET, WORLD_SIZE)
def test_every_pair_is_in_exactly_one_micro_batch(lengths, budget, world_size):
    steps = micro_batches(lengths, budget, world_size)
    assert sorted(index for step in steps for batch in step for index in batch) == list(range(len(lengths)))


@moderate
@given(LENGTHS, BUDGET, WORLD_SIZE)
def test_every_micro_step_has_one_batch_for_each_rank_within_the_budget(lengths, budget, world_size):
    for step in micro_batches(lengths, budget, world_size):
        assert len(step) == world_size
        assert all(within_budget(batch, lengths, budget) for batch in step)


@moderate
@given(LENGTHS, BUDGET, WORLD_SIZE)
def test_a_micro_batch_is_empty_only_if_no_other_can_be_split(lengths, budget, world_size):
    batches = [batch for step in micro_batches(lengths, budget, world_size) for batch in step]
    if not all(batches):
        assert max(map(len, batches)) == 1
        assert batches.count([]) < world_size


@moderate
@given(LENGTHS, BUDGET, WORLD_SIZE)
def test_there_is_no_micro_step_that_fewer_batches_would_save(lengths, budget, world_size):
    """Even batches may need a few micro-steps more than batches that are filled one after the other."""
    found = len(micro_batches(lengths, budget, world_size))
    assert found >= -(-sum(lengths) // (budget + max(lengths, default=0)) // world_size)
    assert found <= -(-len(lengths) // world_size)


@moderate
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 3))
def test_the_fullest_rank_has_at_most_four_thirds_of_the_best_plans_tokens(lengths, world_size):
    """The bound that Graham proved, against the best of all plans."""
    plans = product(range(world_size), repeat=len(lengths))  # the rank of each pair
    best = min(
        max(sum(length for length, own in zip(lengths, ranks, strict=True) if own == rank) for rank in set(ranks))
        for ranks in plans
    )
    (step,) = micro_batches(lengths, sum(lengths), world_size)
    assert max(cost(batch, lengths) for batch in step) <= (4 / 3 - 1 / (3 * world_size)) * best + 1e-9


@moderate
@given(LENGTHS, BUDGET, WORLD_SIZE, st.integers(1, 3))
def test_padded_batches_are_within_the_budget_too(lengths, budget, world_size, rows):
    for step in micro_batches(lengths, budget, world_size, [rows] * len(lengths)):
        for batch in step:
            width = max((lengths[i] for i in batch), default=0)
            assert len(batch) <= 1 or width * rows * len(batch) <= budget


@moderate
@given(LENGTHS, BUDGET, WORLD_SIZE)
def test_batches_of_similar_cost_share_a_micro_step(lengths, budget, world_size):
    costs = [cost(batch, lengths) for step in micro_batches(lengths, budget, world_size) for batch in step]
    assert costs == sorted(costs, reverse=True)


def test_micro_batches_by_hand():
    assert micro_batches([5, 4, 3, 2], 100, 1) == [[[0, 1, 2, 3]]]
    assert micro_batches([5, 4, 3, 2], 100, 2) == [[[0, 3], [1, 2]]]
    assert micro_batches([5, 4, 3, 2], 7, 1) == [[[0, 3]], [[1, 2]]]
    assert micro_batches([5], 100, 3) == [[[0], [], []]]
    assert micro_batches([], 100, 3) == []


@given(st.lists(st.integers(0, 50), unique=True), st.integers(1, 9))
def test_consecutive_batches_keep_the_order_and_are_even(order: list[int], size: int) -> None:
    batches = consecutive(order, size)
    assert [index for batch in batches for index in batch] == order
    assert len(batches) == math.ceil(len(order) / size)
    assert not batches or max(map(len, batches)) - min(map(len, batches)) <= 1


@given(st.lists(st.integers(1, 4)), st.integers(1, 12))
def test_groups_are_dealt_out_like_cards(sizes: list[int], size: int) -> None:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    groups = [list(range(start, start + count)) for start, count in zip(starts, sizes, strict=True)]
    batches = dealt(groups, size)
    assert sorted(index for batch in batches for index in batch) == list(range(sum(sizes)))
    for number, batch in enumerate(batches):
        assert batch == [index for group in groups[number :: math.ceil(sum(sizes) / size)] for index in group]

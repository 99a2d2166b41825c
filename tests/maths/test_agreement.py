"""Rank correlations and numbers of pairs in the same order, against loops over pairs, and their properties."""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from xlr.maths.agreement import chance_deviation, kendall, same_order, same_side, spearman, spearman_deviation

VALUES = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e3, 1e3))  # with and without ties


@st.composite
def two_rewards(draw):
    both = draw(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=8))
    return [first for first, _ in both], [second for _, second in both]


def tensors(drawn):
    return [torch.tensor(values, dtype=torch.float64) for values in drawn]


def pairs(first, second):
    """For each pair of candidates, the sign of its difference under each of the two rewards."""
    for i, j in itertools.combinations(range(len(first)), 2):
        yield tuple((values[i] > values[j]) - (values[i] < values[j]) for values in (first, second))


def ranks(values):
    return [statistics.mean(k for k, other in enumerate(sorted(values)) if other == value) for value in values]


def varies(values):
    return len(set(values)) > 1


@given(two_rewards())
def test_spearman_is_the_correlation_of_average_ranks(drawn):
    assume(all(map(varies, drawn)))
    assert spearman(*tensors(drawn)) == pytest.approx(statistics.correlation(*map(ranks, drawn)), abs=1e-12)


@given(two_rewards())
def test_tau_b_is_the_sum_of_sign_products_over_the_untied_pairs(drawn):
    assume(all(map(varies, drawn)))
    found = list(pairs(*drawn))
    untied = [sum(pair[side] != 0 for pair in found) for side in (0, 1)]
    expected = sum(first * second for first, second in found) / math.sqrt(untied[0] * untied[1])
    assert kendall(*tensors(drawn)) == pytest.approx(expected, abs=1e-12)


@given(two_rewards())
def test_same_order_equals_a_loop_over_pairs(drawn):
    expected = sum(0.5 if 0 in pair else float(pair[0] == pair[1]) for pair in pairs(*drawn))
    assert same_order(*tensors(drawn)) == expected


@given(two_rewards())
def test_only_the_order_matters_and_reversing_it_changes_the_sign(drawn):
    first, second = tensors(drawn)
    falling = 7 - torch.tensor(ranks(drawn[0]), dtype=torch.float64) ** 3
    for measure in (spearman, kendall):
        assert measure(second, first) == pytest.approx(measure(first, second), abs=1e-12, nan_ok=True)
        assert measure(falling, second) == pytest.approx(-measure(first, second), abs=1e-12, nan_ok=True)
        if varies(drawn[0]):
            assert measure(first, first) == pytest.approx(1)
            assert measure(first, -first) == pytest.approx(-1)
    total = math.comb(len(first), 2)
    assert same_order(first, second) + same_order(-first, second) == total


def test_a_reward_that_is_equal_for_all_candidates_has_no_correlation():
    flat, rising = torch.ones(3, dtype=torch.float64), torch.arange(3, dtype=torch.float64)
    assert math.isnan(spearman(flat, rising))
    assert math.isnan(kendall(rising, flat))
    assert same_order(flat, rising) == 1.5


def sums_of_all_orders(measure, sizes):
    """A measure summed over prompts of these sizes, for every order of their candidates."""
    sums = [0.0]
    for size in sizes:
        rising = torch.arange(size, dtype=torch.float64)
        own = [measure(rising, torch.tensor(order).double()) for order in itertools.permutations(range(size))]
        sums = [before + one for before in sums for one in own]
    return sums


@pytest.mark.parametrize("sizes", [(2,), (5,), (3, 4)])
def test_deviations_equal_those_over_all_permutations(sizes):
    counts = sums_of_all_orders(same_order, sizes)
    assert statistics.mean(counts) == pytest.approx(sum(math.comb(size, 2) for size in sizes) / 2)
    assert chance_deviation(sizes) == pytest.approx(statistics.pstdev(counts))
    assert spearman_deviation(sizes) == pytest.approx(statistics.pstdev(sums_of_all_orders(spearman, sizes)))


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0, math.nan]), st.sampled_from([0.2, 0.5, 1.0, math.nan]))
    )
)
def test_judges_agree_where_both_prefer_the_same_answer(both: list[tuple[float, float]]) -> None:
    """Against a plain count, in which ties and failed judgements count for nothing."""
    agreed = decided = 0
    for first, second in both:
        if math.isnan(first) or math.isnan(second) or 0.5 in (first, second):
            continue
        decided += 1
        agreed += (first < 0.5 and second < 0.5) or (first > 0.5 and second > 0.5)
    count, share = same_side([first for first, _ in both], [second for _, second in both])
    assert count == decided
    assert share * count == pytest.approx(agreed)

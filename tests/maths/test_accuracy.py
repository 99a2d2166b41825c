"""Accuracy of a reward on pairs, and the length penalty that the method's own length control finds for them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlr.maths.accuracy import accuracy, length_penalty

PAIRS = st.lists(
    st.tuples(st.floats(-50, 50), st.floats(-50, 50), st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=12
)


@given(PAIRS)
def test_accuracy_equals_a_plain_count(pairs: list[tuple[float, float, int, int]]) -> None:
    chosen, rejected = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    wins = sum(1 for a, b in zip(chosen, rejected, strict=True) if a > b)
    ties = sum(1 for a, b in zip(chosen, rejected, strict=True) if a == b)
    assert accuracy(chosen, rejected) == pytest.approx((wins + ties / 2) / len(pairs))
    assert accuracy(chosen, rejected) + accuracy(rejected, chosen) == pytest.approx(1)


@settings(deadline=None)
@given(PAIRS)
def test_no_smaller_penalty_makes_preferred_and_other_responses_closer_in_length(
    pairs: list[tuple[float, float, int, int]],
) -> None:
    """Naively: try every penalty of the grid, and measure the gap between what wins and what loses."""
    gaps = {}
    for step in range(1000):
        alpha, gap = step / 1000, 0
        for first, second, first_length, second_length in pairs:
            wins = first - alpha * first_length >= second - alpha * second_length
            gap += (first_length - second_length) * (1 if wins else -1)
        gaps[alpha] = abs(gap) / len(pairs)
    found = length_penalty([pair[:2] for pair in pairs], [pair[2:] for pair in pairs])
    best = min(gaps.values())
    near = 1e-9 * max(1, best)
    # Equal penalised rewards: which one is called the winner may differ by rounding, so compare gaps, not penalties.
    ties = any(abs(a - b - found * (m - n)) < 1e-6 for a, b, m, n in pairs)
    assert ties or gaps[found] <= best + near

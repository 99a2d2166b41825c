"""Mean paired differences against the formula of their source, and by simulation."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr.maths.paired import mean_difference


def matched(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """The interval of Agresti and Min 2005, written from their section 3: half a case is added to each of the cells."""
    n12, n21, total = first + 0.5, second + 0.5, both + first + second + neither + 2
    middle = (n12 - n21) / total
    error = math.sqrt((n12 + n21) - (n12 - n21) ** 2 / total) / total
    return max(middle - 1.959964 * error, -1), min(middle + 1.959964 * error, 1)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_two_shares_of_the_same_cases_have_the_published_interval(both: int, first: int, second: int, no: int) -> None:
    found = mean_difference([1.0] * first + [-1.0] * second + [0.0] * (both + no))
    assert (found.low, found.high) == pytest.approx(matched(both, first, second, no))
    assert found.value == pytest.approx((first - second) / max(both + first + second + no, 1))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_swapping_the_models_turns_the_result_around(differences: list[float]) -> None:
    one, other = mean_difference(differences), mean_difference([-value for value in differences])
    assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low))
    assert other.p == pytest.approx(one.p)
    assert 0 <= one.p <= 1
    assert one.count == len(differences)


def test_without_any_difference_nothing_is_certain() -> None:
    found = mean_difference([0.0] * 20)
    assert (found.value, found.p) == (0, 1)
    assert found.low < 0 < found.high


@pytest.mark.parametrize(("win", "loss", "count"), [(0.3, 0.3, 20), (0.5, 0.2, 40), (0.05, 0.05, 100)])
def test_intervals_cover_the_truth_in_95_of_100_cases(win: float, loss: float, count: int) -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(2000):
        values = [1.0 if (u := draw.random()) < win else -1.0 if u < win + loss else 0.0 for _ in range(count)]
        found = mean_difference(values)
        covered += found.low <= win - loss <= found.high
    assert 0.93 <= covered / 2000 <= 0.995

"""Intervals of shares against published examples and exact sums; Holm's correction against its definition."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr.maths.shares import difference_interval, holm, share_interval, two_sided_p

COUNTS = st.integers(1, 400)


def test_intervals_of_newcombe_1998() -> None:
    """Table II of the paper: 56 of 70 against 48 of 80, and 9 of 10 against 3 of 10."""
    assert difference_interval(48 / 80, 80, 56 / 70, 70) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert difference_interval(3 / 10, 10, 9 / 10, 10) == pytest.approx((0.1705, 0.8090), abs=1e-4)


@given(COUNTS, st.data())
def test_a_share_interval_ends_where_the_score_test_does(count: int, data: st.DataObject) -> None:
    """At both ends of the interval, the observed share is 1.96 standard deviations away."""
    wins = data.draw(st.integers(0, count))
    share = wins / count
    for end in share_interval(share, count):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) / math.sqrt(end * (1 - end) / count) == pytest.approx(1.959964, rel=1e-6)


@given(COUNTS, COUNTS, st.data())
def test_a_change_turns_its_sign_with_its_direction(first: int, second: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, first)) / first, data.draw(st.integers(0, second)) / second
    low, high = difference_interval(a, first, b, second)
    assert low <= b - a <= high
    assert difference_interval(b, second, a, first) == pytest.approx((-high, -low))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_steps_reject(p_values: list[float]) -> None:
    """The definition: go through the tests from the smallest p-value, and stop at the first that is too large."""
    rejected = set()
    for rank, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[number] * (len(p_values) - rank) > 0.05:
            break
        rejected.add(number)
    assert {number for number, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


def test_p_values_of_the_normal_distribution() -> None:
    assert two_sided_p(1.959964, 1) == pytest.approx(0.05, abs=1e-6)
    assert two_sided_p(-5.151658, 2) == pytest.approx(0.01, abs=1e-6)
    assert (two_sided_p(0, 0), two_sided_p(-1, 0)) == (1, 0)

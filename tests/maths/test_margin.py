"""The bootstrapped interval of the margin, against all samples and against the normal distribution."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlr.maths.accuracy import margin_interval


def mean_interval(values: list[float], seed: int = 0) -> tuple[float, float]:
    """The interval of margins with these values; the rejected responses' rewards cancel out."""
    return margin_interval([value + 5.0 for value in values], [5.0] * len(values), seed)


def test_it_approaches_the_quantiles_of_all_samples() -> None:
    """With five values there are 3,125 equally likely samples, whose means can be listed."""
    values = [-2.0, 0.0, 1.0, 4.0, 10.0]
    means = [statistics.fmean(sample) for sample in itertools.product(values, repeat=5)]
    low, high = mean_interval(values)
    assert 0.015 < sum(mean < low for mean in means) / len(means) < 0.035
    assert 0.015 < sum(mean > high for mean in means) / len(means) < 0.035


def test_of_many_values_it_is_that_of_the_normal_distribution() -> None:
    draw = random.Random(1)
    values = [draw.gauss(3.0, 2.0) for _ in range(2000)]
    mean, half = statistics.fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    low, high = mean_interval(values)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.sampled_from([0.25, 4.0]), st.integers(0, 5))
def test_it_lies_within_the_values_and_scales_with_them(values: list[float], factor: float, seed: int) -> None:
    low, high = mean_interval(values, seed)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    scaled = mean_interval([factor * value for value in values], seed)
    assert scaled == pytest.approx((factor * low, factor * high), abs=1e-9)
    assert mean_interval(values, seed) == (low, high)


def test_no_values_have_none() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        mean_interval([])

"""Win rates against plain loops, and properties that hold for any judge."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlr.maths import winrate
from xlr.maths.winrate import Comparisons


def comparisons(preferences: list[float], gaps: list[float]) -> Comparisons:
    size = len(preferences)
    values = (torch.tensor(numbers, dtype=torch.float64) for numbers in (preferences, gaps))
    return Comparisons(("",) * size, *values, torch.arange(size))


def rates(judged: Comparisons) -> tuple[float, float]:
    """Win rate and length-controlled win rate."""
    once = torch.ones(1, len(judged.langs), dtype=torch.float64)
    found = winrate.rates(judged, None, once)
    return found["win_rate"].item(), found["length_controlled_win_rate"].item()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive_fit(rows: list[tuple[float, float]], penalty: float) -> tuple[float, float]:
    """(length, skill) by coordinate descent; each minimum is found by bisection of the slope."""
    found = [0.0, 0.0]

    def slope(which: int, value: float) -> float:
        own = [*found]
        own[which] = value
        total = 0.0
        for length, preference in rows:
            total += (sigmoid(own[0] * length + own[1]) - preference) * (length if which == 0 else 1.0)
        return penalty * total

    for _ in range(40):
        for which in (0, 1):
            at_zero = slope(which, 0.0)
            if abs(at_zero) <= 1:
                found[which] = 0.0
                continue
            sign = -1.0 if at_zero > 0 else 1.0
            low, high = sorted((0.0, sign * 30))
            for _ in range(40):
                middle = (low + high) / 2
                if slope(which, middle) + sign > 0:
                    high = middle
                else:
                    low = middle
            found[which] = (low + high) / 2
    return found[0], found[1]


def naive_length_controlled(preferences: list[float], gaps: list[float]) -> float:
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1))
    rows = [(math.tanh(gap / spread), value) for gap, value in zip(gaps, preferences, strict=True)]
    members: list[list[int]] = [[] for _ in range(5)]
    for i in reversed(range(len(rows))):  # each row, from the last, goes to the smallest fold
        min(members, key=len).append(i)
    best = (math.inf, 0.0)
    for power in range(10):
        penalty, loss = 10 ** (-4 + 8 * power / 9), 0.0
        for fold in members:
            length, skill = naive_fit([row for i, row in enumerate(rows) if i not in fold], penalty)
            for i in fold:
                chance = sigmoid(length * rows[i][0] + skill)
                loss -= (rows[i][1] * math.log(chance) + (1 - rows[i][1]) * math.log(1 - chance)) / len(fold)
        best = min(best, (loss, penalty))
    return 100 * sigmoid(naive_fit(rows, best[1])[1])


@pytest.mark.parametrize("seed", [2, 3])
def test_rates_equal_plain_loops(seed: int) -> None:
    rng = random.Random(seed)
    gaps = [float(rng.randint(-90, 60)) for _ in range(14)]
    preferences = [sigmoid(1.0 - gap / 40 + rng.gauss(0, 0.5)) for gap in gaps]
    plain, controlled = rates(comparisons(preferences, gaps))
    assert plain == pytest.approx(100 * sum(preferences) / len(preferences))
    assert controlled == pytest.approx(naive_length_controlled(preferences, gaps), abs=1e-4)
    assert abs(controlled - 50) > 1  # else the penalty would have set the coefficients to zero


JUDGED = st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(-50, 50)), min_size=5, max_size=40)


@settings(max_examples=15, deadline=None)
@given(JUDGED)
def test_swapping_the_models_mirrors_both_rates(judged: list[tuple[float, int]]) -> None:
    there = rates(comparisons([value for value, _ in judged], [gap for _, gap in judged]))
    back = rates(comparisons([1 - value for value, _ in judged], [-gap for _, gap in judged]))
    assert [100 - rate for rate in back] == pytest.approx(there, abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 60))
def test_length_control_lowers_the_win_rate_of_a_judge_that_prefers_length(seed: int, longer: int) -> None:
    rng = random.Random(seed)
    gaps = [-longer + rng.gauss(0, 30) for _ in range(300)]
    plain, controlled = rates(comparisons([sigmoid(-gap / 20) for gap in gaps], gaps))
    assert plain > 60
    assert controlled < plain - 5


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 0.9), st.integers(0, 10**6))
def test_with_equal_lengths_both_rates_are_equal(skill: float, seed: int) -> None:
    rng = random.Random(seed)
    preferences = [min(max(skill + rng.gauss(0, 0.05), 0), 1) for _ in range(300)]
    plain, controlled = rates(comparisons(preferences, [7.0] * 300))
    assert controlled == pytest.approx(plain, abs=2.5)  # the penalty pulls it towards 50

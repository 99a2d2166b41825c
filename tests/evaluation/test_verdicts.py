"""A judge's answer as a number, against plain arithmetic."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr.evaluation import verdicts

logps = st.floats(-50, 0)


@given(logps, logps, logps)
def test_weighted_is_the_share_of_the_second_among_both(first: float, second: float, other: float) -> None:
    share = math.exp(second) / (math.exp(first) + math.exp(second))
    assert verdicts.weighted({"m": first, "M": second, "The": other}) == pytest.approx(share)


@given(logps, logps)
def test_the_other_order_gives_the_complement(first: float, second: float) -> None:
    there = verdicts.weighted({"m": first, "M": second})
    assert there + verdicts.weighted({"m": second, "M": first}) == pytest.approx(1)


def test_spellings_of_a_verdict_are_added_up() -> None:
    found = verdicts.weighted({"m": math.log(0.2), " M": math.log(0.3), "M": math.log(0.1), "Mm": 0.0})
    assert found == pytest.approx(0.4 / 0.6)


def test_what_is_not_there_has_no_probability() -> None:
    assert verdicts.weighted({"M": -30.0, "x": 0.0}) == 1
    assert verdicts.weighted({"m": -30.0}) == 0
    assert math.isnan(verdicts.weighted({"The": 0.0}))
    assert math.isnan(verdicts.weighted({}))
    assert math.isnan(verdicts.weighted({"m": -math.inf}))


def test_tiny_probabilities_do_not_vanish() -> None:
    assert verdicts.weighted({"m": -2000.0, "M": -2000.0}) == 0.5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("m", 0),
        ("M", 1),
        (" M.\n", 1),
        ("**m**", 0),
        ('"M"', 1),
        ("The first, m, is short. My verdict: M", 1),
        ("Between m and M I choose m.", 0),
        ("assistant=M", 1),
    ],
)
def test_a_choice_is_the_last_verdict_that_stands_alone(text: str, value: float) -> None:
    assert verdicts.chosen(text) == value


@pytest.mark.parametrize("text", ["", "Both are good.", "Mm", "model", "1"])
def test_what_is_no_choice_is_undecided(text: str) -> None:
    assert math.isnan(verdicts.chosen(text))

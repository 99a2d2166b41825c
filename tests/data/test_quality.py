from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr.data.quality import count_flaws, flaws, repetition, without
from xlr.records import Score
from xlr.settings.pairconfig import Flaw

FLAWS = get_args(Flaw)


def score(**values: Any) -> Score:
    plain = {
        "id": "1",
        "lang": "es",
        "sample": 0,
        "response": "Hola.",
        "finish_reason": "stop",
        "scored_text": "Hola.",
        "logp_policy": -1.0,
        "logp_reference": -2.0,
        "reward": 1.0,
        "num_tokens": 2,
        "num_chars": 5,
        "detected_lang": "es",
        "repetition": 0.0,
    }
    return Score(**(plain | values))


def naive_repetition(tokens: list[int], n: int) -> float:
    """For each position, looks for the same n tokens at every earlier position."""
    positions = range(len(tokens) - n + 1)
    repeated = [i for i in positions if any(tokens[j : j + n] == tokens[i : i + n] for j in range(i))]
    return len(repeated) / len(positions) if len(positions) else 0.0


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5))
def test_repetition_equals_a_plain_search(tokens: list[int], n: int) -> None:
    assert repetition(tokens, n) == pytest.approx(naive_repetition(tokens, n))
    assert 0 <= repetition(tokens, n) < 1


def test_a_looping_text_is_near_one_and_a_short_or_varied_text_is_zero() -> None:
    assert repetition([1, 2, 3] * 50) > 0.95
    assert repetition(list(range(200))) == 0
    assert repetition([7, 7, 7]) == 0
    assert repetition([]) == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, set()),
        ({"finish_reason": "length"}, {"truncated"}),
        ({"repetition": 0.51}, {"repeated"}),
        ({"repetition": 0.5}, set()),
        ({"detected_lang": "en"}, {"wrong_language"}),
        ({"detected_lang": ""}, set()),
        ({"detected_lang": "en", "finish_reason": "length", "repetition": 0.9}, set(FLAWS) - {"duplicate"}),
    ],
)
def test_each_flaw_is_detected(values: dict[str, Any], expected: set[Flaw]) -> None:
    assert flaws([score(**values)]) == [expected]


def test_a_duplicate_is_a_later_sample_of_the_same_prompt_and_language() -> None:
    rows = [score(), score(sample=1), score(id="2"), score(lang="de", detected_lang="de"), score(sample=2)]
    assert [bool(found) for found in flaws(rows)] == [False, True, False, False, True]
    assert without(rows, ["duplicate"]) == ([rows[0], rows[2], rows[3]], {"duplicate": 2})


ROWS = st.lists(
    st.builds(
        score,
        id=st.sampled_from("12"),
        response=st.sampled_from(["Hola.", "Adiós."]),
        finish_reason=st.sampled_from(["stop", "length"]),
        detected_lang=st.sampled_from(["es", "en", ""]),
        repetition=st.sampled_from([0.0, 0.9]),
    ),
    max_size=12,
)


@given(ROWS, st.sets(st.sampled_from(FLAWS)))
def test_filters_remove_exactly_the_rows_with_the_given_flaws(rows: list[Score], filters: set[Flaw]) -> None:
    kept, counts = without(rows, filters)
    expected = [row for row, found in zip(rows, flaws(rows), strict=True) if not found & filters]
    assert kept == expected
    assert counts == {flaw: count for flaw, count in count_flaws(rows).items() if flaw in filters}
    assert Counter(count_flaws(rows).keys()) <= Counter(FLAWS)
    assert without(rows, []) == (rows, {})

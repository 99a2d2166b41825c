"""Reading annotations: swapped rows, both orders, empty answers, and every broken row refused with its position."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.annotated import GOOD, row, swapped, write
from tests.junk import SMALL, VALUES, junk_json, refused
from xlr.errors import UserError
from xlr.evaluation import annotations

CASES: dict[str, tuple[object, str]] = {
    "not a list": (
        {"a": 1},
        "contains an object, not a list; each element must be an object of AlpacaEval's annotations",
    ),
    "not an object": ([*GOOD, 3], "element 3: a number, not an object of AlpacaEval's annotations"),
    "missing key": ([*GOOD, {"instruction": "Say."}], "element 3: has no 'output_1'"),
    "out of range": ([*GOOD, row(3, 2.5)], "element 3: preference 2.5 is not on AlpacaEval's scale"),
    "not a number": ([*GOOD, row(3, 1) | {"preference": "2"}], 'element 3: preference "2" is not on'),
    "several generators": ([*GOOD, row(3, 1, generator_2="other")], 'element 3: compares "base" with "other"'),
    "empty output that wins": ([*GOOD, row(3, 2, output_2=" ")], "element 3: output_2 is empty"),
    "empty output that ties": ([*GOOD, row(3, 1.5, output_1="")], "element 3: output_1 is empty"),
    "empty instruction": ([*GOOD, row(3, None, instruction=" ")], "element 3: instruction is empty"),
    "preference that is not the mean": (
        [*GOOD, row(3, 1.5, preferences=[1.2, 1.4])],
        "element 3: preference is not the mean of",
    ),
    "preference of an order out of range": (
        [*GOOD, row(3, 1.5, preferences=[1, 3])],
        "element 3: preference 3 is not on",
    ),
    "preferences that are no list": ([*GOOD, row(3, 1, preferences=1)], "element 3: preferences is 1; write a list"),
    "three preferences": ([*GOOD, row(3, 1, preferences=[1, 1, 1])], "element 3: preferences is [1, 1, 1]; write a"),
    "one preference that differs": ([*GOOD, row(3, 1, preferences=[2])], "element 3: preference is not the mean of"),
    "language that is no text": ([*GOOD, row(3, 1, lang=["es"])], 'element 3: lang is ["es"]; write a language code'),
    "language with a line break": ([*GOOD, row(3, 1, lang="e\ns")], "element 3: lang is"),
    "invisible instruction": ([*GOOD, row(3, None, instruction="\u200b")], "element 3: instruction is empty"),
    "invisible generator": ([*GOOD, row(3, 1, generator_2="\ufeff")], "element 3: generator_2 is empty"),
    "not a string": ([*GOOD, row(3, 1, output_1=None)], "element 3: output_1 is empty or not a string"),
    "one row": (GOOD[:1], "has 1 judged instructions; a win rate needs at least two"),
    "all failed": ([row(0, None), row(1, None)], "has 0 judged instructions"),
    "no rows": ([], "has 0 judged instructions"),
    "other answers": ([*GOOD, swapped(row(0, 2, output_2="else"), 1)], "element 3: its answers differ"),
}


def test_an_empty_answer_may_lose_or_tie_with_an_empty_one(tmp_path: Path) -> None:
    rows = [*GOOD, row(3, 1, output_2=""), row(4, 2, output_1=" "), row(5, 1.5, output_1="", output_2=" ")]
    found = annotations.read(write(tmp_path / "empty.json", rows)).comparisons
    assert found.preferences_N.tolist()[3:] == [0, 1, 0.5]


def test_a_row_with_both_orders_equals_two_rows(tmp_path: Path) -> None:
    sides = [(1.2, 1.9), (2.0, 1.0), (1.4, 1.4), (None, 1.3)]
    halves = [(row(i, there), swapped(row(i, back), back and 3 - back)) for i, (there, back) in enumerate(sides)]
    means = [None if None in pair else sum(pair) / 2 for pair in sides]
    whole = [row(i, mean, preferences=list(pair)) for i, (mean, pair) in enumerate(zip(means, sides, strict=True))]
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.json", whole[:2])
    write(folder / "b.json", whole[2:])
    one = annotations.read(write(tmp_path / "two.json", [half for pair in halves for half in pair]))
    other = annotations.read(folder)
    assert one.position_bias == other.position_bias
    assert one.comparisons.preferences_N.tolist() == pytest.approx(
        other.comparisons.preferences_N.tolist(), nan_ok=True
    )


@pytest.mark.parametrize("case", CASES)
def test_bad_annotations_are_refused(case: str, tmp_path: Path) -> None:
    rows, message = CASES[case]
    with pytest.raises(UserError) as caught:
        annotations.read(write(tmp_path / "bad.json", rows))
    assert str(tmp_path / "bad.json") in str(caught.value)
    assert message in str(caught.value)


@SMALL
@given(st.lists(st.dictionaries(st.sampled_from([*row(0, 1), "preferences"]), VALUES, max_size=3), max_size=3))
def test_any_rows_are_annotations_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any-annotations.json"
    path.write_text(junk_json([*GOOD, *(row(3 + i, 1) | change for i, change in enumerate(changes))]), encoding="utf-8")
    if refused(lambda: annotations.read(path), path.name) is None:
        preferences_N = annotations.read(path).comparisons.preferences_N
        assert all(0 <= one <= 1 or one != one for one in preferences_N.tolist())


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "folder.json" / "x.json").mkdir()
    with pytest.raises(UserError, match=r"x\.json: is a folder; name a regular file"):
        annotations.read(tmp_path / "folder.json")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    with pytest.raises(UserError, match=r"loop\.json: cannot be read .Too many levels of symbolic links"):
        annotations.read(tmp_path / "loop.json")

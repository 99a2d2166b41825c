"""The question to a judge, and its reply as a preference, against plain arithmetic."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr.errors import UserError
from xlr.judging import question


def test_the_default_template_has_every_field_once() -> None:
    system, user = question.fill(question.DEFAULT, "¿Qué?", "one", "two", "Spanish")
    assert system["role"] == "system"
    assert user["content"].count("¿Qué?") == user["content"].count("\none\n") == user["content"].count("\ntwo\n") == 1
    assert user["content"].index("\none\n") < user["content"].index("\ntwo\n")
    assert "in Spanish" in user["content"]


def test_fields_in_an_answer_are_not_replaced() -> None:
    _, user = question.fill(question.DEFAULT, "{output_2}", "{output_1} {language}", r"\1 {x}", "German")
    for text in ("<instruction>\n{output_2}\n<", "\n{output_1} {language}\n", "\n\\1 {x}\n"):
        assert text in user["content"]


def test_a_template_file_with_im_start_marks_has_several_messages(tmp_path: Path) -> None:
    file = tmp_path / "judge.txt"
    user = "{instruction}\n\nm: {output_1}\nM: {output_2}"
    text = f"<|im_start|>system\nJudge.\n<|im_end|>\n<|im_start|>user\n{user}\n<|im_end|>"
    file.write_text(text, encoding="utf-8")
    filled = question.fill(question.load(str(file)), "Say.", "a", "b", "English")
    assert filled == [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": "Say.\n\nm: a\nM: b"},
    ]


def test_a_template_file_without_marks_is_one_user_message(tmp_path: Path) -> None:
    file = tmp_path / "judge.txt"
    file.write_text("{instruction} {output_1} {output_2}", encoding="utf-8")
    assert question.fill(question.load(str(file)), "x", "y", "z", "") == [{"role": "user", "content": "x y z"}]


def test_a_template_without_a_required_field_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "judge.txt"
    file.write_text("{instruction} {output_1} {output}", encoding="utf-8")
    with pytest.raises(UserError, match=r"judge.txt: has no \{output_2\}"):
        question.load(str(file))
    with pytest.raises(UserError, match="cannot be read"):
        question.load(str(tmp_path / "other.txt"))


logps = st.floats(-50, 0)


@given(logps, logps, logps)
def test_weighted_is_the_share_of_the_second_verdict_in_both(first: float, second: float, other: float) -> None:
    share = math.exp(second) / (math.exp(first) + math.exp(second))
    assert question.weighted({"m": first, "M": second, "The": other}) == pytest.approx(share)


@given(logps, logps)
def test_swapping_the_verdicts_gives_the_complement(first: float, second: float) -> None:
    there = question.weighted({"m": first, "M": second})
    assert there + question.weighted({"m": second, "M": first}) == pytest.approx(1)


def test_tokens_of_the_same_verdict_are_added_up() -> None:
    found = question.weighted({"m": math.log(0.2), " M": math.log(0.3), "M": math.log(0.1), "Mm": 0.0})
    assert found == pytest.approx(0.4 / 0.6)


def test_a_missing_verdict_has_probability_zero_and_two_missing_ones_give_nan() -> None:
    assert question.weighted({"M": -30.0, "x": 0.0}) == 1
    assert question.weighted({"m": -30.0}) == 0
    assert math.isnan(question.weighted({"The": 0.0}))
    assert math.isnan(question.weighted({}))
    assert math.isnan(question.weighted({"m": -math.inf}))


def test_tiny_probabilities_do_not_underflow() -> None:
    assert question.weighted({"m": -2000.0, "M": -2000.0}) == 0.5


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
def test_a_choice_is_the_last_separate_verdict(text: str, value: float) -> None:
    assert question.choice(text) == value


@pytest.mark.parametrize("text", ["", "Both are good.", "Mm", "model", "1"])
def test_a_reply_without_verdict_is_undecided(text: str) -> None:
    assert math.isnan(question.choice(text))

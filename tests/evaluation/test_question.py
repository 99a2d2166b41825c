"""What a judge is asked."""

from pathlib import Path

import pytest

from xlr.errors import UserError
from xlr.evaluation import question as judgeprompt


def test_the_default_holds_everything_and_nothing_twice() -> None:
    system, user = judgeprompt.fill(judgeprompt.DEFAULT, "¿Qué?", "one", "two", "Spanish")
    assert system["role"] == "system"
    assert user["content"].count("¿Qué?") == user["content"].count("\none\n") == user["content"].count("\ntwo\n") == 1
    assert user["content"].index("\none\n") < user["content"].index("\ntwo\n")
    assert "in Spanish" in user["content"]


def test_answers_that_spell_fields_stay_as_they_are() -> None:
    _, user = judgeprompt.fill(judgeprompt.DEFAULT, "{output_2}", "{output_1} {language}", r"\1 {x}", "German")
    for text in ("<instruction>\n{output_2}\n<", "\n{output_1} {language}\n", "\n\\1 {x}\n"):
        assert text in user["content"]


def test_a_template_file_with_turn_marks(tmp_path: Path) -> None:
    file = tmp_path / "judge.txt"
    user = "{instruction}\n\nm: {output_1}\nM: {output_2}"
    text = f"<|im_start|>system\nJudge.\n<|im_end|>\n<|im_start|>user\n{user}\n<|im_end|>"
    file.write_text(text, encoding="utf-8")
    filled = judgeprompt.fill(judgeprompt.load(str(file)), "Say.", "a", "b", "English")
    assert filled == [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": "Say.\n\nm: a\nM: b"},
    ]


def test_a_plain_template_is_one_user_message(tmp_path: Path) -> None:
    file = tmp_path / "judge.txt"
    file.write_text("{instruction} {output_1} {output_2}", encoding="utf-8")
    assert judgeprompt.fill(judgeprompt.load(str(file)), "x", "y", "z", "") == [{"role": "user", "content": "x y z"}]


def test_a_template_that_hides_an_answer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "judge.txt"
    file.write_text("{instruction} {output_1} {output}", encoding="utf-8")
    with pytest.raises(UserError, match=r"judge.txt: has no \{output_2\}"):
        judgeprompt.load(str(file))
    with pytest.raises(UserError, match="cannot be read"):
        judgeprompt.load(str(tmp_path / "other.txt"))

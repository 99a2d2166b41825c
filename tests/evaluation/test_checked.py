"""Answers that can be checked: what counts as right, and a real stage."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import inprocess
from tests.conftest import Cli, tiny_tree
from xlr.data.expected import ExpectedAnswers, load_expected
from xlr.errors import UserError
from xlr.evaluation import answers, checked
from xlr.evaluation.finalanswers import is_right
from xlr.findings.collect import collect
from xlr.findings.measures import RIGHT_ANSWERS, of_answers
from xlr.records import CheckedAnswer
from xlr.run.manifests import rows_of
from xlr.settings.config import Config
from xlr.settings.dataconfig import CheckedConfig


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ("18", "She earns 9 * 2 = $18 a day.", True),
        ("18", "She earns $18, not 16.", False),
        ("18", "18", True),
        ("18", "La respuesta es 18,00 €.", True),
        ("18", "The answer is -18.", False),
        ("-3", "Es bleiben −3 Grad.", True),
        ("70000", "He made $70,000.", True),
        ("70000", "Er verdient 70.000 Euro.", True),
        ("70000", "Il gagne 70 000 €.", True),
        ("70000", "Sie verdient 70’000 Franken", True),
        ("1234567", "1,234,567 people", True),
        ("1234.5", "1.234,5", True),
        ("1234.5", "1,234.5", True),
        ("1.5", "1,5 Liter", True),
        ("3", "উত্তর হল ৩।", True),
        ("12", "คำตอบคือ ๑๒", True),
        ("5", "five", False),
        ("5", "", False),
        ("B", "The right choice is (B).", True),
        ("B", "A is tempting, but B", True),
        ("B", "B is tempting, but it is A", False),
        ("B", "Because", False),
        ("B", "The answer is B. I hope this helps.", True),
        ("18", "1.8", False),
        ("100", "10.0", False),
        ("18.0", "180", False),
        ("1234567.5", "1.234.567,5", True),
        ("हाँ", "हो", False),
        ("∞", "…", False),
        ("Paris", "Let me think.\n\nparis.\n", True),
        ("Paris", "Paris is not it.\nLondon", False),
        ("Москва", "Ответ:\n**москва**", True),
    ],
)
def test_what_an_answer_ends_with_decides(expected: str, answer: str, right: bool) -> None:
    assert is_right(expected, answer) is right


@given(st.integers(-(10**12), 10**12), st.text(alphabet="abc ,.\n$", max_size=20))
def test_every_integer_is_found_however_it_is_written(number: int, before: str) -> None:
    for text in (str(number), f"{number:,}", f"{number:,}".replace(",", "."), f"{number:,}".replace(",", "\u202f")):
        assert is_right(str(number), f"{before} {text}.")


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-1000, max_value=1000, places=2))
def test_a_decimal_is_read_with_a_point_or_a_comma(value: Decimal) -> None:
    assert is_right(str(value), f"= {value}")
    assert is_right(str(value), f"= {value}".replace(".", ","))


@given(st.text(max_size=30), st.text(max_size=60))
def test_any_text_is_right_or_wrong(expected: str, answer: str) -> None:
    is_right(expected, answer)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    folder = tmp_path / "questions"
    folder.mkdir()
    for lang, text in (("en", "What is {} + 1?"), ("es", "¿Cuánto es {} + 1?")):
        rows = [{"query": text.format(number), "response": str(number + 1)} for number in range(3)]
        (folder / f"{lang}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def section(questions: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(questions), "columns": {"instruction": "query"}, "max_new_tokens": 8} | more


def test_a_model_is_asked_and_its_answers_are_checked(
    questions: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Random models answer nonsense: what they say is compared with the rule, row by row."""
    tree = tiny_tree.__wrapped__(tiny_models, tmp_path)  # type: ignore[attr-defined]
    tree["evaluate"] = {"checked": section(questions)}
    context = inprocess.opened(Config.model_validate(tree), tmp_path / "run")
    context.run.create()
    assert checked.iterations(context.config) == [0, 1]
    checked.check(context)
    facts = checked.make(context, 0)
    rows = rows_of(context.run.iteration(0) / "checked", CheckedAnswer)
    assert [(row.lang, row.id) for row in rows] == [(lang, str(n)) for lang in ("en", "es") for n in (1, 2, 3)]
    assert [row.expected for row in rows] == ["1", "2", "3"] * 2
    assert all(row.right is is_right(row.expected, row.response) for row in rows)
    for lang in ("en", "es"):
        assert facts[lang] == {"rows": 3, "right": sum(row.right for row in rows if row.lang == lang) / 3}
    found = collect(context.config, context.run, "run")
    (measure,) = (one for one in of_answers(found) if one.title == RIGHT_ANSWERS)
    assert measure.by_language["es"]["π0"].count == 3


def test_a_changed_answer_makes_the_stage_again_and_an_unchanged_model_does_not(
    questions: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    tree = tiny_tree.__wrapped__(tiny_models, tmp_path)  # type: ignore[attr-defined]
    tree["evaluate"] = {"checked": section(questions)}
    context = inprocess.opened(Config.model_validate(tree), tmp_path / "run")
    before = checked.artifact(context, 0).input_digests
    assert before == checked.artifact(context, 0).input_digests
    file = questions / "es.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('"response": "3"', '"response": "4"'), encoding="utf-8")
    after = checked.artifact(context, 0).input_digests
    assert {name for name in before if before[name] != after[name]} == {"prompts es", "answers es"}


def test_other_questions_do_not_make_the_evaluation_again(
    questions: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    tree = tiny_tree.__wrapped__(tiny_models, tmp_path)  # type: ignore[attr-defined]
    found = []
    for section_of in (None, section(questions), section(questions, limit=2)):
        tree["evaluate"]["checked"] = section_of
        context = inprocess.opened(Config.model_validate(tree), tmp_path / "run")
        found.append(answers.artifact(context, 0).recorded_settings)
    assert found[0] == found[1] == found[2]
    assert not any("checked" in key for key in found[0])


def test_answers_are_part_of_the_digest_of_one_file_for_all_languages(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    digests = set()
    for answer in ("1", "2"):
        rows = [{"id": "a", "lang": "en", "instruction": "?", "answer": answer}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        digests.add(ExpectedAnswers(CheckedConfig(path=str(path)), "en").digest())
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"id": 1, "instruction": "?"}], {}, r"en\.jsonl:1: the question '1' has no answer in 'answer'; add it, or"),
        ([{"id": 1, "instruction": "?", "answer": " "}], {}, "has no answer in 'answer'"),
        ([{"id": 1, "instruction": "?", "answer": True}], {}, "has no answer in 'answer'"),
        ([{"id": 1, "instruction": "?", "answer": "1"}], {"answer": "solution"}, "has no answer in 'solution'"),
    ],
)
def test_a_question_without_an_answer_is_named(
    rows: list[dict[str, Any]], columns: dict[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "en.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_expected(CheckedConfig.model_validate({"path": str(tmp_path), "columns": columns}), "en")


def test_numbers_may_be_numbers(tmp_path: Path) -> None:
    (tmp_path / "en.jsonl").write_text('{"id": 1, "instruction": "?", "answer": 18}\n', encoding="utf-8")
    assert load_expected(CheckedConfig(path=str(tmp_path)), "en") == {"1": "18"}


def test_the_stage_is_planned_and_listed(
    questions: Path, tiny_tree: dict[str, Any], write_config: Any, cli_here: Cli, tmp_path: Path
) -> None:
    tree = tiny_tree | {"evaluate": {"checked": section(questions)}, "slurm": {"nodes": 1}}
    planned = cli_here("plan", write_config(tree), "--json")
    assert planned.returncode == 0, planned.stderr
    stages = {own["stage"]: own for own in json.loads(planned.stdout)["stages"]}
    assert stages["check 0"]["tokens"] > 0
    shown = cli_here("submit", write_config(tree), "--dry-run")
    assert "evaluate-1  check 1" in shown.stdout

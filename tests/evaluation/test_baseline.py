"""Reference outputs: found by id or by instruction, and bad ones refused with their position."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xlr.errors import UserError
from xlr.evaluation.baseline import reference_outputs
from xlr.records import Prompt

Row = dict[str, Any]
PROMPTS = [Prompt(key, lang, f"Say {key} in {lang}.") for lang in ("en", "es") for key in "abc"]
EXPECTED = {(one.lang, one.id): f"output of {one.id} in {one.lang}" for one in PROMPTS}


def outputs(lang: str) -> list[Row]:
    """Rows in AlpacaEval's format."""
    return [
        {"instruction": one.instruction, "output": EXPECTED[lang, one.id], "generator": "davinci"}
        for one in PROMPTS
        if one.lang == lang
    ]


def write(folder: Path, lang: str, rows: list[Row]) -> None:
    (folder / f"{lang}.json").write_text(json.dumps(rows), encoding="utf-8")


def test_outputs_are_found_by_instruction(tmp_path: Path) -> None:
    for lang in ("en", "es"):
        write(tmp_path, lang, outputs(lang)[::-1])
    found = reference_outputs(str(tmp_path), PROMPTS)
    assert found.by_prompt == EXPECTED
    assert found.generator == "davinci"


@pytest.mark.parametrize("name", ["id", "instruction_id"])
def test_outputs_are_found_by_id_and_others_are_ignored(name: str, tmp_path: Path) -> None:
    for lang in ("en", "es"):
        rows = [{name: key, "output": EXPECTED[lang, key]} for key in "cab"]
        write(tmp_path, lang, [*rows, {name: "other", "output": "x"}])
    assert reference_outputs(str(tmp_path), PROMPTS).by_prompt == EXPECTED


def test_outputs_of_several_generators_have_the_name_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "en", outputs("en"))
    write(tmp_path, "es", [row | {"generator": "gpt4"} for row in outputs("es")])
    assert reference_outputs(str(tmp_path), PROMPTS).generator == tmp_path.name


def without_one(rows: list[Row]) -> list[Row]:
    return rows[:1] + rows[2:]


def with_an_empty_one(rows: list[Row]) -> list[Row]:
    return [*rows[:2], rows[2] | {"output": " "}]


def with_other_ids(rows: list[Row]) -> list[Row]:
    return [row | {"id": key} for row, key in zip(rows, "xyz", strict=True)]


def with_the_id_of_another(rows: list[Row]) -> list[Row]:
    return [row | {"id": key} for row, key in zip(rows, "bca", strict=True)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_one, r"es\.json: has no output for the instruction 'b' \('Say b in es\.'\)"),
        (with_an_empty_one, r"es\.json: element 2: the output is empty"),
        (with_other_ids, r"es\.json: has no output for the instruction 'a'"),
        (
            with_the_id_of_another,
            r"es\.json: element 0: its instruction is not the instruction 'b' of evaluate\.prompts",
        ),
        (lambda rows: ["text"], r"es\.json: element 0: a string, not an object with instruction and output"),
    ],
)
def test_bad_outputs_are_refused(change: Callable[[list[Row]], list[Row]], message: str, tmp_path: Path) -> None:
    write(tmp_path, "en", outputs("en"))
    write(tmp_path, "es", change(outputs("es")))
    with pytest.raises(UserError, match=message):
        reference_outputs(str(tmp_path), PROMPTS)


def test_a_folder_without_outputs_is_refused() -> None:
    with pytest.raises(UserError, match=r"judge\.baseline nowhere: has no en\.json with reference outputs; set"):
        reference_outputs("nowhere", PROMPTS)

"""Parallel instructions: aligned to English by id, every bad row refused with its position."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.junk import SMALL, TEXTS, VALUES, junk_json, refused
from xlr.data.preferencerows import preference_sources
from xlr.data.prompts import load_held_out, load_prompts, selected, selection, unread_columns
from xlr.errors import UserError
from xlr.foreign.texts import control_in
from xlr.settings.dataconfig import PreferencesConfig, PromptsConfig
from xlr.shipped import RECIPES


def write(folder: Path, lang: str, rows: list[dict[str, object]]) -> None:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{lang}.jsonl").write_text(text, encoding="utf-8")


def rows(*pairs: tuple[str, str]) -> list[dict[str, object]]:
    return [{"instruction_id": key, "instruction": text} for key, text in pairs]


def test_prompts_of_every_language_are_in_the_english_order(tmp_path: Path) -> None:
    write(tmp_path, "en", rows(("b", "B"), ("a", "A"), ("c", "C")))
    write(tmp_path, "es", rows(("a", "á"), ("c", "ç"), ("b", "β")))
    found = load_prompts(PromptsConfig(path=str(tmp_path), limit=2), ["es"])
    assert [(p.id, p.instruction) for p in found["es"]] == [("b", "β"), ("a", "á")]
    assert [p.id for p in found["en"]] == ["b", "a"]


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6), st.integers(0, 6))
def test_a_slice_is_that_of_python_and_several_are_joined(a: int, b: int, c: int, d: int) -> None:
    keys = [str(number) for number in range(5)]
    section = PromptsConfig(path="prompts", slice=(f"{a}:{b}", f"{c}:"))
    if not keys[a:b] or not keys[c:]:
        with pytest.raises(UserError, match=r"prompts: has 5 English ids, so that the slice .* is empty"):
            selected(keys, section)
    else:
        assert selected(keys, section) == [key for key in keys if key in {*keys[a:b], *keys[c:]}]
    assert selected(keys, PromptsConfig(path="prompts", limit=d or None)) == keys[: d or None]


def test_the_first_prompts_are_recorded_as_a_limit_however_they_are_written() -> None:
    def recorded(**given: Any) -> list[object]:
        return list(selection(PromptsConfig(path="prompts", **given)).values())

    assert recorded(limit=4) == recorded(slice=":4") == recorded(slice="0:4") == [4, None]
    assert recorded() == recorded(slice=":") == recorded(slice="0:") == [None, None]
    assert recorded(slice="4:8") == recorded(slice="04:08") == [None, "4:8"]
    assert recorded(slice="4:") == [None, "4:"]


@pytest.mark.parametrize(("key", "why"), [("split", "is no dataset"), ("subset", "is not on the hub")])
def test_a_split_or_subset_of_files_is_refused(tmp_path: Path, key: str, why: str) -> None:
    write(tmp_path, "en", rows(("a", "A")))
    with pytest.raises(UserError, match=f"{why}, so that {key}=test has no effect; remove it"):
        load_prompts(PromptsConfig.model_validate({"path": str(tmp_path), key: "test"}), ["en"])
    with pytest.raises(UserError, match=f"{why}, so that {key}=test has no effect; remove it"):
        preference_sources(PreferencesConfig.model_validate({"path": str(tmp_path), key: "test"}))


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    write(tmp_path, "en", [{"instruction_id": 1, "id": 7, "instruction": "A", "input": "B", "source": "C"}])
    assert unread_columns(PromptsConfig(path=str(tmp_path)), ["es"]) == ["id", "source"]
    (tmp_path / "wide.csv").write_text("id,en,es,note\n1,A,Á,x\n")
    assert unread_columns(PromptsConfig(path=str(tmp_path / "wide.csv")), ["en", "es"]) == ["note"]


def test_held_out_prompts_are_the_same_in_every_language(tmp_path: Path) -> None:
    write(tmp_path, "en", rows(("a", "A"), ("b", "B"), ("c", "C")))
    write(tmp_path, "es", rows(("a", "á"), ("c", "ç")))
    section = PromptsConfig(path=str(tmp_path))
    assert [p.id for p in load_prompts(section, ["es"])["es"]] == ["a", "c"]
    with pytest.raises(UserError, match=r"es\.jsonl: lacks the id 'b', which en has; .*same instructions"):
        load_held_out(section, ["es"])
    assert [p.id for p in load_held_out(section.model_copy(update={"limit": 1}), ["es"])["es"]] == ["a"]


def test_a_json_list_with_numeric_ids_is_read(tmp_path: Path) -> None:
    content = [{"id": 1, "instruction": "x", "dataset": "d"}, {"id": 2, "instruction": "y"}]
    (tmp_path / "en.json").write_text(json.dumps(content))
    assert [p.id for p in load_prompts(PromptsConfig(path=str(tmp_path)), [])["en"]] == ["1", "2"]


def test_a_datasets_folder_with_a_split_a_language_is_read(tmp_path: Path) -> None:
    table = {lang: datasets.Dataset.from_list(rows(("a", lang), ("b", lang * 2))) for lang in ("en", "es")}
    datasets.DatasetDict(table).save_to_disk(tmp_path / "saved")
    found = load_prompts(PromptsConfig(path=str(tmp_path / "saved")), ["es"])
    assert [p.instruction for p in found["es"]] == ["es", "eses"]


def test_the_shipped_prompts_are_parallel() -> None:
    for name, count in (("prompts", 24), ("heldout", 40)):
        found = load_prompts(PromptsConfig(path=str(RECIPES / "quickstart" / name)), ["es", "de", "fr"])
        assert {lang: len(prompts) for lang, prompts in found.items()} == dict.fromkeys(("en", "es", "de", "fr"), count)


@pytest.mark.parametrize(
    ("english", "spanish", "message"),
    [
        (rows(("a", "A")), rows(("a", "á"), ("z", "ž")), r"the id 'z' is in es but not in English"),
        (rows(("a", "A"), ("a", "B")), rows(("a", "á")), r"en\.jsonl:2: duplicate id 'a'"),
        (rows(("a", "A")), rows(("a", "  ")), r"es\.jsonl:1: the instruction 'a' is empty"),
        (rows(("a", "A")), [{"instruction": "x"}], r"es has no ids, but en has; give every row an instruction_id"),
        (rows(("a", "A")), [*rows(("a", "á")), {"instruction": "x"}], r"es\.jsonl:2: the row has no instruction_id"),
        (rows(("a", "A")), [], r"es has no instructions; add some, or remove the language"),
        (rows(("a", "A")), rows(("a", "\u200b\u2060\x01")), r"es\.jsonl:1: the instruction 'a' is empty: .*visible"),
        (rows(("a", "A")), [{"id": "a", "prompt": "á"}], r"no column 'instruction' \(it has id, prompt\); name"),
        (rows(("a", "A")), [{"id": "a", "instruction": ["á"]}], r"es\.jsonl:1: instruction: a message has no content"),
        (rows(("a", "A")), rows(("a", "á\0")), r"es\.jsonl:1: instruction contains the control character .u0000"),
        (rows(("a", "A")), [{"id": True, "instruction": "x"}], r"es\.jsonl:1: id is true; an id is a text or a whole"),
        (rows(("a", "A")), [{"id": 1.0, "instruction": "x"}], r"es\.jsonl:1: id is 1\.0; an id is"),
        (rows(("a", "A")), [{"id": ["a"], "instruction": "x"}], r"es\.jsonl:1: id is \[\"a\"\]; an id is"),
        (rows(("a", "A")), rows(("", "á")), r"es\.jsonl:1: instruction_id is empty; every row needs a short id"),
        (rows(("a", "A")), rows(("a\n", "á")), r"es\.jsonl:1: instruction_id contains the control character .u000a"),
    ],
)
def test_a_bad_row_is_refused_with_its_position(
    tmp_path: Path, english: list[dict[str, object]], spanish: list[dict[str, object]], message: str
) -> None:
    write(tmp_path, "en", english)
    write(tmp_path, "es", spanish)
    with pytest.raises(UserError, match=message):
        load_prompts(PromptsConfig(path=str(tmp_path)), ["es"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": True, "instruction": "x"}, "en row 0: id is true; an id is"),
        ({"id": 0.5, "instruction": "x"}, r"en row 0: id is 0\.5; an id is"),
        ({"id": "a", "instruction": "\u200b"}, "en row 0: the instruction 'a' is empty"),
        ({"id": "a", "instruction": "a\0"}, "en row 0: instruction contains the control character"),
        ({"id": "a", "text": "x"}, r"en row 0: the row has no column 'instruction' \(it has id, text\)"),
    ],
)
def test_a_bad_row_of_a_dataset_is_refused(tmp_path: Path, row: dict[str, object], message: str) -> None:
    datasets.DatasetDict({"en": datasets.Dataset.from_list([row])}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=message):
        load_prompts(PromptsConfig(path=str(tmp_path / "saved")), [])


def test_a_damaged_dataset_is_refused(tmp_path: Path) -> None:
    datasets.DatasetDict({"en": datasets.Dataset.from_list(rows(("a", "A")))}).save_to_disk(tmp_path / "saved")
    section = PromptsConfig(path=str(tmp_path / "saved"))
    for file in sorted((tmp_path / "saved").rglob("*.*")):
        whole = file.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"[]", b"null", b"{}", b"\xff" * 20):
            file.write_bytes(damaged)
            refused(lambda: load_prompts(section, []), str(tmp_path))
        file.write_bytes(whole)
    assert load_prompts(section, [])


@SMALL
@given(st.lists(st.fixed_dictionaries({"id": VALUES | TEXTS, "instruction": TEXTS | VALUES}), max_size=3))
@example([{"id": "\ud7fc", "instruction": "x"}])  # of no character so far, so that Python does not print it
def test_any_rows_are_prompts_or_refused(tmp_path_factory: pytest.TempPathFactory, content: list[Any]) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-prompts"
    folder.mkdir(exist_ok=True)
    (folder / "en.jsonl").write_text("\n".join(map(junk_json, content)), encoding="utf-8")
    section = PromptsConfig(path=str(folder))
    if refused(lambda: load_prompts(section, []), str(folder)) is None:
        found = load_prompts(section, [])["en"]
        assert len({prompt.id for prompt in found}) == len(content)
        assert all(prompt.instruction.strip() and control_in(prompt.id) is None for prompt in found)


def test_an_error_about_a_missing_language_lists_the_files_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "es", rows(("a", "á")))
    with pytest.raises(UserError, match=r"no en\.jsonl.*English is always required.*it contains es\.jsonl"):
        load_prompts(PromptsConfig(path=str(tmp_path)), ["es"])

"""Reading instructions and preferences: aligned to English by id, every fault named with its line."""

import json
from pathlib import Path

import datasets
import pytest

from xlr.config import PromptsConfig
from xlr.data.prompts import load_held_out, load_preferences, load_prompts
from xlr.errors import UserError
from xlr.shipped import RECIPES


def write(folder: Path, lang: str, rows: list[dict[str, object]]) -> None:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{lang}.jsonl").write_text(text, encoding="utf-8")


def rows(*pairs: tuple[str, str]) -> list[dict[str, object]]:
    return [{"instruction_id": key, "instruction": text} for key, text in pairs]


def test_languages_follow_the_english_order(tmp_path: Path) -> None:
    write(tmp_path, "en", rows(("b", "B"), ("a", "A"), ("c", "C")))
    write(tmp_path, "es", rows(("a", "á"), ("c", "ç"), ("b", "β")))
    found = load_prompts(PromptsConfig(path=str(tmp_path), limit=2), ["es"])
    assert [(p.id, p.instruction) for p in found["es"]] == [("b", "β"), ("a", "á")]
    assert [p.id for p in found["en"]] == ["b", "a"]


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
    for name, count in (("prompts", 24), ("heldout", 16)):
        found = load_prompts(PromptsConfig(path=str(RECIPES / "quickstart" / name)), ["es", "de", "fr"])
        assert {lang: len(prompts) for lang, prompts in found.items()} == dict.fromkeys(("en", "es", "de", "fr"), count)
    assert len(load_preferences(str(RECIPES / "quickstart" / "preferences.jsonl"))) == 64


@pytest.mark.parametrize(
    ("english", "spanish", "message"),
    [
        (rows(("a", "A")), rows(("a", "á"), ("z", "ž")), r"es has the id 'z', which English lacks"),
        (rows(("a", "A"), ("a", "B")), rows(("a", "á")), r"en\.jsonl:2: the id 'a' stands twice"),
        (rows(("a", "A")), rows(("a", "  ")), r"es\.jsonl:1: the instruction 'a' is empty"),
        (rows(("a", "A")), [{"instruction": "x"}], r"es\.jsonl:1: the row has no instruction_id"),
        (rows(("a", "A")), [], r"es holds no instructions"),
    ],
)
def test_a_faulty_row_is_named(
    tmp_path: Path, english: list[dict[str, object]], spanish: list[dict[str, object]], message: str
) -> None:
    write(tmp_path, "en", english)
    write(tmp_path, "es", spanish)
    with pytest.raises(UserError, match=message):
        load_prompts(PromptsConfig(path=str(tmp_path)), ["es"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"instruction_id": "a", "instruction": "x"}\n{"instruc', r"en\.jsonl:2: not valid JSON .*column"),
        (b'["a"]\n', r"en\.jsonl:1: a list, not an object"),
        (b'{"instruction_id": "a", "instruction": "\xff"}\n', r"en\.jsonl: not UTF-8"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "en.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_prompts(PromptsConfig(path=str(tmp_path)), [])


def test_a_missing_language_lists_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "es", rows(("a", "á")))
    with pytest.raises(UserError, match=r"no en\.jsonl.*English is always needed.*it holds es\.jsonl"):
        load_prompts(PromptsConfig(path=str(tmp_path)), ["es"])


def test_preferences_may_be_strings_or_whole_conversations(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}]
    path.write_text(
        json.dumps({"prompt": "q", "chosen": "good", "rejected": "bad"})
        + "\n"
        + json.dumps({"prompt": turns[:1], "chosen": turns, "rejected": [{"role": "assistant", "content": "bad"}]})
    )
    (_, *first), (_, *second) = load_preferences(str(path))
    assert first == second == [[{"role": "user", "content": "q"}], "good", "bad"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "q", "chosen": "c"}, r"p\.jsonl:1: rejected: missing or empty"),
        ({"prompt": "q", "chosen": " ", "rejected": "r"}, r"p\.jsonl:1: chosen: a message without content"),
        ({"prompt": [], "chosen": "c", "rejected": "r"}, r"p\.jsonl:1: prompt: missing or empty"),
    ],
)
def test_a_faulty_preference_is_named(tmp_path: Path, line: dict[str, object], message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(UserError, match=message):
        load_preferences(str(path))

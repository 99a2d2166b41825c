"""Preference sets: strings or conversations, JSONL or Parquet, every bad row refused with its position."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.junk import SMALL, TEXTS, VALUES, junk_json, no_files, refused
from xlr.data.preferences import Preference, load_parallel_preferences, load_preferences
from xlr.errors import UserError
from xlr.shipped import RECIPES


def test_the_shipped_preferences_can_be_read() -> None:
    assert len(load_preferences(str(RECIPES / "quickstart" / "preferences.jsonl"))) == 64


def test_fields_can_be_strings_or_conversations(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    question, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "good"), ("assistant", "bad"))
    )
    rows = [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"id": 7, "prompt": [question], "chosen": [question, good], "rejected": [bad]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert load_preferences(str(path)) == [
        Preference(key, [{"role": "user", "content": "q"}], "good", "bad") for key in ("0", "7")
    ]


def test_parquet_and_jsonl_are_read_alike(tmp_path: Path) -> None:
    rows = [{"id": key, "prompt": "q", "chosen": f"good {key}", "rejected": "bad"} for key in "ab"]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert load_preferences(str(tmp_path / "p.parquet")) == load_preferences(str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "q", "chosen": "c"}, r"p\.jsonl:1: rejected: missing or empty"),
        ({"prompt": "q", "chosen": " ", "rejected": "r"}, r"p\.jsonl:1: chosen: a message has no content"),
        ({"prompt": [], "chosen": "c", "rejected": "r"}, r"p\.jsonl:1: prompt: missing or empty"),
        (["q", "c", "r"], r"p\.jsonl:1: a list, not an object with prompt, chosen and rejected"),
    ],
)
def test_a_bad_row_is_refused_with_its_position(tmp_path: Path, line: object, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(UserError, match=message):
        load_preferences(str(path))


def turns(*contents: str, system: bool = False) -> list[dict[str, str]]:
    """Messages of user and assistant in turn, after a system message."""
    roles = (["system"] if system else []) + ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


GOOD = {"prompt": "q", "chosen": "c", "rejected": "r"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": "c"}, "chosen and rejected are the same; correct one of them"),
        ({"rejected": " c\n"}, "chosen and rejected are the same"),
        ({"chosen": "\u200b"}, "chosen: a message has no content"),
        ({"chosen": "a\0"}, "chosen: a message contains the control character"),
        ({"prompt": turns("q", "a")}, "prompt: its last message is not the user's; end it with the question"),
        ({"prompt": turns("s", system=True)}, "prompt: has only a system message"),
        (
            {"prompt": [{"role": "tool", "content": "q"}]},
            'prompt: a message has the role "tool"; it must be one of system',
        ),
        (
            {"prompt": [{"content": "q"}]},
            'prompt: a message has the role ""; it must be one of system, user, assistant',
        ),
        ({"prompt": [{"role": ["user"], "content": "q"}]}, "prompt: a message has the role"),
        ({"prompt": ["q"]}, "prompt: a message has no content"),
        (
            {"prompt": turns("q") + turns("q")},
            "prompt: a message of the user stands where one of the assistant must be",
        ),
        ({"prompt": turns("q") + turns("s", "q", system=True)}, "prompt: a message of the system stands where"),
        (
            {"prompt": turns("q", "a")[1:] + turns("q")},
            "prompt: a message of the assistant stands where one of the user",
        ),
        ({"chosen": turns("q")}, "chosen: its last message is not the assistant's; end it with the answer"),
        ({"chosen": turns("other", "c")}, "chosen: its earlier messages are not those of prompt; make them equal"),
        ({"chosen": turns("s", "q", "c", system=True)}, "chosen: its earlier messages are not those of prompt"),
        ({"id": True}, "id is true; an id is a text or a whole number"),
        ({"id": 1.0}, "id is 1.0; an id is a text or a whole number"),
        ({"id": [1]}, r"id is \[1\]; an id is"),
        ({"id": " "}, "id is empty; every row needs a short id of its own"),
        ({"id": "a\tb"}, "id contains the control character .u0009; remove it"),
        ({"id": "x" * 501}, "id is longer than 500 characters"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_row_that_teaches_the_wrong_thing_is_refused(
    tmp_path: Path, change: dict[str, object], message: str, suffix: str
) -> None:
    path = tmp_path / f"p.{suffix}"
    if suffix == "jsonl":
        path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change))
    else:
        pq.write_table(pa.Table.from_pylist([GOOD | change]), path)
    with pytest.raises(UserError, match=rf"p\.jsonl:2: .*{message}|p\.parquet row 0: .*{message}"):
        load_preferences(str(path))


def test_conversations_with_a_system_message_and_several_turns_are_read(tmp_path: Path) -> None:
    path, prompt = tmp_path / "p.jsonl", turns("s", "q", "a", "q2", system=True)
    whole = turns("s", "q", "a", "q2", "good", system=True)
    path.write_text(json.dumps({"prompt": prompt, "chosen": whole, "rejected": "bad"}))
    assert load_preferences(str(path)) == [Preference("0", prompt, "good", "bad")]


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps(GOOD | {"id": key}) for key in ("a", 1, "1")))
    with pytest.raises(UserError, match=r"p\.jsonl:3: duplicate id '1'; change it, or leave out all ids"):
        load_preferences(str(path))


def test_parquet_is_read_from_the_file_alone(tmp_path: Path) -> None:
    """pyarrow would add a column for a folder named key=value; other columns are not read at all."""
    folder = tmp_path / "id=7"
    folder.mkdir()
    columns = {name: pa.array([text]) for name, text in GOOD.items()}
    pq.write_table(pa.table(columns | {"time": pa.array([2**62], pa.timestamp("us"))}), folder / "p.parquet")
    assert load_preferences(str(folder / "p.parquet"))[0].id == "0"
    twice = pa.Table.from_arrays([*columns.values(), columns["prompt"]], names=[*columns, "prompt"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(UserError, match=r"twice\.parquet: has the column prompt more than once; remove one"):
        load_preferences(str(tmp_path / "twice.parquet"))


FIELDS = st.sampled_from(["q", "c", "r"]) | st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]) | VALUES, "content": TEXTS | VALUES}
    ),
    max_size=4,
)


@SMALL
@given(st.fixed_dictionaries(dict.fromkeys(GOOD, FIELDS | VALUES), optional={"id": VALUES}))
def test_any_row_is_a_preference_or_refused(tmp_path_factory: pytest.TempPathFactory, row: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "any-preferences.jsonl"
    path.write_text(junk_json(row), encoding="utf-8")
    if refused(lambda: load_preferences(str(path)), path.name) is None:
        (found,) = load_preferences(str(path))
        assert found.prompt[-1]["role"] == "user"
        assert found.chosen.strip() != found.rejected.strip()
        assert json.dumps([found.prompt, found.chosen, found.rejected], ensure_ascii=False).encode()


def test_a_damaged_parquet_file_is_refused_wherever_it_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD | {"id": str(number)} for number in range(20)]), path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 23):
        for damaged in (whole[:place], whole[:place] + b"\xff\x00\xff" + whole[place + 3 :]):
            path.write_bytes(damaged)
            refused(lambda: load_preferences(str(path)), path.name)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    for words, path in no_files(tmp_path, suffix).items():
        with pytest.raises(UserError, match=f"{words}|no such file"):
            load_preferences(str(path))


def test_a_missing_empty_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p\.jsonl: no such file; preferences are"):
        load_preferences(str(tmp_path / "p.jsonl"))
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"p\.jsonl: contains no preferences"):
        load_preferences(str(tmp_path / "p.jsonl"))
    (tmp_path / "p.parquet").write_text("{}")
    with pytest.raises(UserError, match=r"p\.parquet: not a Parquet file"):
        load_preferences(str(tmp_path / "p.parquet"))


def parallel(folder: Path, **languages: list[dict[str, str]]) -> str:
    """A folder with a file for each language, whose rows get an answer each."""
    for lang, rows in languages.items():
        lines = [json.dumps({"chosen": "good", "rejected": "bad", **row}) for row in rows]
        (folder / f"{lang}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(folder)


def test_an_english_prompt_comes_from_the_row_or_from_the_same_id(tmp_path: Path) -> None:
    path = parallel(
        tmp_path,
        en=[{"id": "a", "prompt": "Why?"}],
        es=[{"id": "a", "prompt": "¿Por qué?"}, {"id": "b", "prompt": "¿Quién?", "english": "Who?"}],
    )
    (tmp_path / "README.md").write_text("no rows")
    found = load_parallel_preferences(path)
    assert [one.english[-1]["content"] for one in found["es"]] == ["Why?", "Who?"]
    assert [one.own.prompt[-1]["content"] for one in found["es"]] == ["¿Por qué?", "¿Quién?"]
    assert [one.english for one in found["en"]] == [one.own.prompt for one in found["en"]]


def test_the_shipped_held_out_preferences_are_parallel_and_neutral_in_length() -> None:
    """The longer answer is the better one in about half of the pairs, so that length alone gives about 50 %."""
    found = load_parallel_preferences(str(RECIPES / "quickstart" / "preferences_heldout"))
    assert {lang: len(own) for lang, own in found.items()} == dict.fromkeys(("de", "en", "es", "fr"), 40)
    for own in found.values():
        longer = sum(len(one.own.chosen) > len(one.own.rejected) for one in own)
        assert 16 <= longer <= 24


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        ({}, "has no file of preferences such as en.jsonl"),
        ({"xx": [{"prompt": "q"}]}, "'xx' is no ISO 639-1 language code"),
        ({"es": [{"id": "a", "prompt": "q"}]}, r"es\.jsonl: the preference 'a' has no English prompt"),
        ({"es": [{"id": "a", "prompt": "q", "english": " "}]}, r"es\.jsonl:1: english: a message has no content"),
        ({"en": [{"prompt": "q"}], "es": []}, r"es\.jsonl: contains no preferences"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    tmp_path: Path, languages: dict[str, list[dict[str, str]]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_parallel_preferences(parallel(tmp_path, **languages))

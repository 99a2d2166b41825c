"""Preference sets: strings or conversations, JSONL or Parquet, every bad row refused with its position."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.conftest import COMMIT, HubCache
from tests.junk import SMALL, TEXTS, VALUES, junk_json, no_files, refused
from xlr.data.preferencerows import PreferenceRows, preference_sources
from xlr.data.preferences import Preference, load_parallel_preferences, load_preferences
from xlr.errors import UserError
from xlr.foreign import hub
from xlr.settings.dataconfig import ParallelPreferencesConfig, PreferencesConfig
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
        with pytest.raises(UserError, match=f"{words}|no such file|has no file of preferences"):
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
        ({"xx": [{"prompt": "q"}]}, "'xx' is no language tag of BCP 47"),
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


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def binarized(key: str, question: str = "Why?") -> dict[str, Any]:
    """A row in the form of UltraFeedback binarized: its answers repeat the prompt, which is a text."""
    good, bad = conversation(question, f"Good {key}."), conversation(question, f"Bad {key}.")
    return {"id": key, "prompt": question, "chosen": good, "rejected": bad, "messages": good, "score_chosen": 8.5}


def answers(given: str | PreferencesConfig) -> list[str]:
    return [one.chosen for one in load_preferences(given)]


def test_preferences_may_be_a_dataset_of_the_hub(hub_cache: HubCache) -> None:
    parts = {("default", split): [binarized(split)] for split in ("train", "train_prefs", "test_prefs")}
    hub_cache("lab/pairs", parts)
    assert answers("lab/pairs") == ["Good train."]
    assert answers(PreferencesConfig(path="lab/pairs", split="train_prefs")) == ["Good train_prefs."]
    (one,) = load_preferences("lab/pairs")
    assert one == Preference("train", [{"role": "user", "content": "Why?"}], "Good train.", "Bad train.")
    with pytest.raises(UserError, match=r"^lab/pairs valid: a dataset of .* cannot be read .*check the path, `split`"):
        answers(PreferencesConfig(path="lab/pairs", split="valid"))
    with pytest.raises(UserError, match=r"^lab/pairs no: a dataset of .* cannot be read"):
        answers(PreferencesConfig(path="lab/pairs", subset="no"))
    with pytest.raises(UserError, match=r"^lab/other: not a folder, and the hub does not give this dataset"):
        answers("lab/other")


def test_a_pinned_dataset_stays_at_its_commit(hub_cache: HubCache) -> None:
    hub_cache("lab/pairs", {("default", "train"): [binarized("old")]})
    hub_cache("lab/pairs", {("default", "train"): [binarized("new")]}, commit="2" * 40)
    assert answers("lab/pairs") == ["Good new."]
    assert answers(f"lab/pairs@{COMMIT}") == ["Good old."]


def test_a_saved_dataset_may_hold_preferences(tmp_path: Path) -> None:
    splits = {name: datasets.Dataset.from_list([binarized(name)]) for name in ("train", "test_prefs")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "splits")
    splits["train"].save_to_disk(tmp_path / "one")
    assert answers(str(tmp_path / "one")) == answers(str(tmp_path / "splits")) == ["Good train."]
    assert answers(PreferencesConfig(path=str(tmp_path / "splits"), split="test_prefs")) == ["Good test_prefs."]
    with pytest.raises(UserError, match=r"splits no: a dataset of preferences that cannot be read \('no'\)"):
        answers(PreferencesConfig(path=str(tmp_path / "splits"), split="no"))


def test_a_dataset_may_have_a_part_for_each_language(hub_cache: HubCache, tmp_path: Path) -> None:
    rows = {"en": [binarized("a", "Why?")], "es": [binarized("a", "¿Por qué?")]}
    hub_cache("lab/pairs", {(lang, "test"): own for lang, own in rows.items()})
    datasets.DatasetDict({lang: datasets.Dataset.from_list(own) for lang, own in rows.items()}).save_to_disk(
        tmp_path / "saved"
    )
    for source in (PreferencesConfig(path="lab/pairs", split="test"), str(tmp_path / "saved")):
        found = load_parallel_preferences(source)
        assert list(found) == ["en", "es"]
        assert [found["es"][0].own.prompt[0]["content"], found["es"][0].english[0]["content"]] == ["¿Por qué?", "Why?"]
        assert [one.prompt[0]["content"] for one in load_preferences(source)] == ["Why?"]
    only = load_parallel_preferences(PreferencesConfig(path="lab/pairs", split="test", subset="es"))
    assert list(only) == ["en"]  # a subset that is named holds English


def test_english_versions_may_be_elsewhere_as_those_of_m_rewardbench_are(hub_cache: HubCache, tmp_path: Path) -> None:
    """Its parts are named as in FLORES, and its English version is RewardBench, in two splits."""

    def row(number: int, prompt: str) -> dict[str, Any]:
        models = {"chosen_model": "a", "rejected_model": "b"}
        answers = {"chosen": f"Good {prompt}", "rejected": f"Bad {prompt}"}
        return {"id": number, "prompt": prompt, **answers, **models, "subset": "llmbar-natural"}

    parts = {"deu_Latn": "Warum?", "arb_Arab": "لماذا؟", "zho_Hant": "為什麼？"}
    several = {(name, "test"): [row(7, prompt) | {"language": name}] for name, prompt in parts.items()}
    hub_cache("lab/m-bench", several)
    hub_cache("lab/bench", {("default", "raw"): [row(1, "x")], ("default", "filtered"): [row(7, "Why?"), row(8, "y")]})
    given = {"path": "lab/m-bench", "split": "test", "english": {"path": "lab/bench", "split": "filtered"}}
    found = load_parallel_preferences(ParallelPreferencesConfig.model_validate(given))
    assert {lang: len(own) for lang, own in found.items()} == {"en": 2, "de": 1, "ar": 1, "zh-Hant": 1}
    assert [found["de"][0].own.prompt[0]["content"], found["de"][0].english[0]["content"]] == ["Warum?", "Why?"]
    assert found["ar"][0].own.category == "llmbar-natural"
    some = ParallelPreferencesConfig.model_validate(given | {"languages": ["ar"]})
    assert list(load_parallel_preferences(some)) == ["en", "ar"]
    with pytest.raises(UserError, match=r"^lab/m-bench: has no fr, only ar, de, zh-Hant; correct `languages`"):
        load_parallel_preferences(some.model_copy(update={"languages": ("ar", "fr")}))
    (tmp_path / "english.jsonl").write_text(json.dumps(row(7, "Why so?")) + "\n", encoding="utf-8")
    in_file = ParallelPreferencesConfig.model_validate(given | {"english": str(tmp_path / "english.jsonl")})
    assert load_parallel_preferences(in_file)["de"][0].english[0]["content"] == "Why so?"
    with pytest.raises(UserError, match="'7' has no English prompt, under which"):
        load_parallel_preferences(
            ParallelPreferencesConfig.model_validate(given | {"english": {"path": "lab/bench", "split": "raw"}})
        )
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "en.jsonl").write_text(json.dumps(row(7, "Why?")) + "\n", encoding="utf-8")
    alone = {"path": "lab/m-bench", "split": "test"}
    for without_effect, message in (
        (given | {"subset": "deu_Latn"}, "each language is a subset, so that subset=deu_Latn has no effect"),
        (alone | {"languages": ["de"]}, "all of it is taken for English, so that languages has no effect"),
        ({"path": str(tmp_path / "files"), "languages": ["en"]}, "is no dataset, so that languages has no effect"),
        ({"path": str(tmp_path / "files"), "english": "lab/bench"}, "is no dataset, so that english has no effect"),
    ):
        with pytest.raises(UserError, match=message):
            load_parallel_preferences(ParallelPreferencesConfig.model_validate(without_effect))


def test_what_a_dataset_row_says_decides_its_digest(tmp_path: Path) -> None:
    def digest(folder: str, row: dict[str, Any]) -> str:
        datasets.Dataset.from_list([row]).save_to_disk(tmp_path / folder)
        source = preference_sources(str(tmp_path / folder))["en"]
        assert isinstance(source, PreferenceRows)
        return source.digest()

    row = binarized("a")
    first = digest("1", row)
    assert digest("2", row | {"score_chosen": 1.0}) == first
    assert digest("3", row | {"rejected": "Other."}) != first


def test_a_bad_row_of_a_dataset_is_refused_with_its_position(hub_cache: HubCache) -> None:
    hub_cache("lab/pairs", {("default", "train"): [binarized("a"), binarized("a")]})
    with pytest.raises(UserError, match=r"^lab/pairs row 1: duplicate id 'a'"):
        load_preferences("lab/pairs")
    # Prepared tables are kept by commit, so another dataset needs another one, as on the hub.
    hub_cache("lab/text", {("default", "train"): [{"text": "x"}]}, commit="2" * 40)
    with pytest.raises(UserError, match=r"^lab/text row 0: prompt: missing or empty"):
        load_preferences("lab/text")


@pytest.mark.parametrize("path", ["/no/such/file", "pairs", "data/my/pairs", "data/pairs.jsonl", "pairs.parquet"])
def test_missing_preferences_never_ask_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot", lambda *_: pytest.fail("the hub was asked"))
    for read in (load_preferences, load_parallel_preferences):
        with pytest.raises(UserError, match=f"^{path}: no such file; preferences are a file of rows"):
            read(path)


def test_a_folder_without_english_gives_no_english_preferences(tmp_path: Path) -> None:
    (tmp_path / "es.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"has no English preferences; add en\.jsonl"):
        load_preferences(str(tmp_path))

"""Prompts in every form that users have them in: the same prompts come out, or one message says what is missing."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.conftest import HubCache
from tests.junk import SMALL, refused
from xlr.data.preferences import load_preferences
from xlr.data.prompts import load_prompts, sources
from xlr.data.tables import SUFFIXES, read_table
from xlr.errors import UserError
from xlr.foreign import hub
from xlr.records import Prompt
from xlr.settings.dataconfig import PromptsConfig

TEXTS = {"en": ["Why is the sky blue?", 'Say "a, b"\nthen c.'], "es": ["¿Por qué es azul el cielo?", "Di «a;\tb»."]}
EXPECTED = {lang: [Prompt(f"q{n}", lang, text) for n, text in enumerate(texts)] for lang, texts in TEXTS.items()}
Table = list[dict[str, Any]]


def save(path: Path, rows: Table, mark: bytes = b"", newline: str = "\n") -> None:
    """Write rows in the form that the name of the file says."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row, ensure_ascii=False) + newline for row in rows)
    elif name.endswith(".json"):
        text = json.dumps(rows, indent=1)
    else:
        with (path.parent / "plain").open("w", encoding="utf-8", newline="") as file:
            delimiter = "\t" if name.endswith(".tsv") else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator=newline)
            writer.writeheader()
            writer.writerows(rows)
        text = (path.parent / "plain").read_bytes().decode()
        (path.parent / "plain").unlink()
    content = mark + text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def found(path: Path, **section: Any) -> dict[str, list[Prompt]]:
    return load_prompts(PromptsConfig.model_validate({"path": str(path), **section}), ["es"])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("windows", [False, True])
def test_a_file_a_language_may_be_of_any_kind(suffix: str, windows: bool, tmp_path: Path) -> None:
    how = (b"\xef\xbb\xbf", "\r\n") if windows else (b"", "\n")
    for lang, texts in TEXTS.items():
        rows = [{"id": f"q{number}", "instruction": text, "other": number} for number, text in enumerate(texts)]
        save(tmp_path / f"{lang}{suffix}", rows, *how)
    assert found(tmp_path) == EXPECTED


def long_table(lang: str = "lang") -> Table:
    rows = [
        {"id": f"q{number}", "instruction": text, lang: name}
        for name, texts in TEXTS.items()
        for number, text in enumerate(texts)
    ]
    return [rows[i] for i in (0, 2, 1, 3)]  # languages in turn


def wide_table(prefix: str = "") -> Table:
    return [{"id": f"q{n}", **{f"{prefix}{lang}": texts[n] for lang, texts in TEXTS.items()}} for n in range(2)]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (long_table(), {}),
        (long_table("language"), {}),
        (long_table("tongue"), {"lang": "tongue"}),
        (wide_table(), {}),
        (wide_table("text_"), {"instruction": "text_{lang}"}),
    ],
)
def test_one_table_may_hold_all_languages(suffix: str, rows: Table, columns: dict[str, str], tmp_path: Path) -> None:
    save(tmp_path / f"all{suffix}", rows)
    assert found(tmp_path / f"all{suffix}", columns=columns) == EXPECTED


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    for lang, texts in TEXTS.items():
        save(tmp_path / f"{lang}.csv", [{"number": f"q{n}", "prompt": text} for n, text in enumerate(texts)])
    assert found(tmp_path, columns={"id": "number", "instruction": "prompt"}) == EXPECTED


@pytest.mark.parametrize("rows", [long_table(), wide_table()])
def test_rows_without_ids_belong_together_by_their_number(rows: Table, tmp_path: Path) -> None:
    save(tmp_path / "all.csv", [{name: value for name, value in row.items() if name != "id"} for row in rows])
    prompts = found(tmp_path / "all.csv")
    assert [(one.id, one.instruction) for one in prompts["es"]] == list(zip("12", TEXTS["es"], strict=True))
    assert [one.id for one in prompts["en"]] == ["1", "2"]


def saved_dataset(rows: Table, folder: Path) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    return folder


def saved_splits(rows: Table, folder: Path) -> Path:
    splits = {"train": rows[:0] or rows[:1], "prompts": rows}
    datasets.DatasetDict({name: datasets.Dataset.from_list(own) for name, own in splits.items()}).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("rows", [long_table(), wide_table()])
@pytest.mark.parametrize(("save_rows", "section"), [(saved_dataset, {}), (saved_splits, {"split": "prompts"})])
def test_a_saved_dataset_may_hold_all_languages(
    rows: Table, save_rows: Callable[[Table, Path], Path], section: dict[str, str], tmp_path: Path
) -> None:
    assert found(save_rows(rows, tmp_path / "saved"), **section) == EXPECTED


def test_a_hub_dataset_is_asked_for_a_split_and_a_subset(hub_cache: HubCache) -> None:
    tables = {lang: [row for row in long_table() if row["lang"] == lang] for lang in ("en", "es")}
    hub_cache("owner/name", {("all", "test"): long_table(), **{(lang, "train"): own for lang, own in tables.items()}})
    assert load_prompts(PromptsConfig(path="owner/name", subset="all", split="test"), ["es"]) == EXPECTED
    assert load_prompts(PromptsConfig(path="owner/name"), ["es"]) == EXPECTED
    with pytest.raises(UserError, match=r"prompts\.path owner/name: the dataset of .* cannot be read for 'en' .*valid"):
        load_prompts(PromptsConfig(path="owner/name", subset="all", split="valid"), ["es"])


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "prompts", "data/my/prompts", "prompts.csv", "data/prompts.csv.gz"]
)
def test_a_missing_local_path_never_asks_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match="no such file or folder, and no name of a hub dataset"):
        found(Path(path))


def test_a_language_of_a_table_decides_alone_what_is_read_of_it(tmp_path: Path) -> None:
    """A language that is added to a table changes nothing for the others."""

    def digests() -> dict[str, Any]:
        named = sources(PromptsConfig(path=str(tmp_path / "all.csv")), ["es"])
        return {name: source.digest() for name, source in named.items() if not isinstance(source, Path)}

    save(tmp_path / "all.csv", wide_table())
    before = digests()
    save(tmp_path / "all.csv", [{**row, "de": "Warum?"} for row in wide_table()])
    assert digests() == before
    save(tmp_path / "all.csv", [{**row, "es": "¿Qué?"} for row in wide_table()])
    assert digests()["prompts en"] == before["prompts en"]
    assert digests()["prompts es"] != before["prompts es"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("all.csv", "id,text\n1,x\n", r"neither a column `lang` nor a column 'en' .*; it has id, text: name a column"),
        (
            "all.csv",
            "id,lang,prompt\n1,en,x\n",
            r"all\.csv:2: the row has no column 'instruction' \(it has id, lang, pr",
        ),
        ("all.csv", "id,en\n1,x\n", r"nor a column 'es'"),
        ("all.csv", "id,en,es\n1,x\n", r"all\.csv:2: has 2 cells, but the first line 3; put a cell"),
        ("all.csv", "id,en,en\n1,x,y\n", r'all\.csv: has the column "en" more than once'),
        ("all.csv", 'id,en,es\n1,"x"y,z\n', r"all\.csv:2: not valid CSV"),
        ("all.csv", 'id,en,es\n1,"x\n', r"all\.csv:2: not valid CSV"),
        ("all.csv", "", r"en has no instructions"),
        ("all.csv", "id,en,es\n1,x,\n", r"es has no instructions"),
        ("all.tsv.gz", "not gzip", r"all\.tsv\.gz: damaged gzip file"),
        ("all.txt", "x", r"all\.txt: not a file of rows; its name must end in \.jsonl, "),
        (
            "all.jsonl",
            '{"lang": "en", "instruction": "x"}\n{"instruction": "y"}',
            r"jsonl:2: the row has no column 'lang'",
        ),
        (
            "all.jsonl",
            '{"id": 1, "en": "x", "es": "y"}\n{"id": 2, "en": 3, "es": "z"}',
            r"jsonl:2: the instruction '2' is",
        ),
    ],
)
def test_what_is_missing_is_named_with_its_place(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        found(tmp_path / name)


def test_languages_without_ids_must_be_parallel(tmp_path: Path) -> None:
    save(tmp_path / "en.csv", [{"instruction": "a"}, {"instruction": "b"}])
    save(tmp_path / "es.csv", [{"instruction": "á"}])
    with pytest.raises(
        UserError, match=r"es has 1 rows and English 2\. Rows without ids belong together by their number"
    ):
        found(tmp_path)


@SMALL
@given(junk=st.binary(max_size=60), suffix=st.sampled_from([".csv", ".tsv", ".csv.gz", ".jsonl.gz", ".json.gz"]))
def test_any_bytes_are_rows_or_refused(tmp_path_factory: pytest.TempPathFactory, junk: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"junk{suffix}"
    for content in (junk, gzip.compress(junk), gzip.compress(junk)[:-5]):
        path.write_bytes(b"a,b\n" + content if suffix in (".csv", ".tsv") else content)
        refused(lambda: list(read_table(path, "an object")), path.name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_preferences_may_be_of_any_kind(suffix: str, tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "Why?", "chosen": "So.", "rejected": "No, because."}]
    save(tmp_path / "plain.jsonl", rows)
    save(tmp_path / f"p{suffix}", rows)
    assert load_preferences(str(tmp_path / f"p{suffix}")) == load_preferences(str(tmp_path / "plain.jsonl"))

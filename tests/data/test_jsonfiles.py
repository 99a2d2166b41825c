"""JSONL files and JSON lists: every object with its position, every bad line refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.junk import SMALL, VALUES, junk_json, no_files, refused
from xlr.data.tables import language_source, read_table
from xlr.errors import UserError

EXPECTED = "an object with a and b"


def read(path: Path, content: bytes) -> list[tuple[str, dict[str, object]]]:
    path.write_bytes(content)
    return list(read_table(path, EXPECTED))


def test_lines_are_counted_from_one_and_empty_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert read(path, b'{"a": 1}\n\n{"b": 2}\n') == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"b": 2})]


def test_elements_of_a_list_are_counted_from_zero(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert read(path, b'[{"a": 1}, {}]') == [(f"{path}: element 0", {"a": 1}), (f"{path}: element 1", {})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"b', r"x\.jsonl:2: not valid JSON .*column"),
        ("x.jsonl", b'["a"]\n', r"x\.jsonl:1: a list, not an object with a and b"),
        ("x.jsonl", b'{"a": "\xff"}\n', r"x\.jsonl:1: not UTF-8"),
        ("x.json", b"[", r"x\.json: not valid JSON"),
        (
            "x.json",
            b'{"a": 1}',
            r"x\.json: contains an object, not a list; each element must be an object with a and b",
        ),
        ("x.json", b"[{}, null]", r"x\.json: element 1: null, not an object with a and b"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"x\.jsonl:2: not UTF-8"),
        ("x.json", b'[{"a": 1},\n{"a": "\xff"}]', r"x\.json:2: not UTF-8"),
        ("x.jsonl", b'{"a": 1, "b": 2, "a": 3}', r'x\.jsonl:1: has the key "a" more than once; remove one of them'),
        ("x.json", b'[{}, {"b": {"a": 1, "a": 1}}]', r'x\.json: element 1: "b": has the key "a" more than once'),
        ("x.json", b'{"a": 1, "a": 1}', r'x\.json: has the key "a" more than once'),
        ("x.jsonl", b'{"a": NaN}', r'x\.jsonl:1: "a": NaN is not JSON; write null, or a number'),
        ("x.json", b'[{"a": [-Infinity]}]', r'x\.json: element 0: "a": -Infinity is not JSON'),
        ("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r'x\.jsonl:1: "a": a number has 5000 digits'),
        ("x.jsonl", b'{"a": 1e999}', r'x\.jsonl:1: "a": a number is too large'),
        ("x.jsonl", b'{"a": "\\ud800"}', r'x\.jsonl:1: "a": contains .ud800, half of a surrogate pair'),
        ("x.jsonl", b'{"\\udfff": 1}', r"x\.jsonl:1: .*contains .udfff"),
        ("x.jsonl", b'{"a": "\xf0\x9f\x9a\x80 \\ud83d"}', r"contains .ud83d"),
        ("x.jsonl", b'{"a": ' + b"[" * 10**6, r"x\.jsonl:1: is nested more than 100 levels deep"),
        ("x.jsonl", b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", r'x\.jsonl:1: "a": is nested more than 100 levels'),
        ("x.json", b"[" * 10**6, r"x\.json: is nested more than 100 levels deep"),
        ("x.jsonl", b'{"a": 1}\n{"a": "' + b"x" * (17 << 20) + b'"}', r"x\.jsonl:2: is longer than 16 MiB"),
        ("x.jsonl", b"\x00" * 100, r"x\.jsonl:1: not valid JSON"),
        ("x.json", b"[true]", r"x\.json: element 0: a boolean, not an object with a and b"),
    ],
)
def test_bad_content_is_refused_with_its_position(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path / name, content)


def test_whole_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    assert read(tmp_path / "x.jsonl", b'{"a": "\\ud83d\\ude80"}')[0][1] == {"a": "🚀"}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    for name, path in no_files(tmp_path, suffix).items():
        with pytest.raises(UserError, match=name) as refused:
            list(read_table(path, EXPECTED))
        assert str(refused.value).startswith(f"{path}: ")


@SMALL
@given(VALUES, st.sampled_from(["jsonl", "json"]))
def test_any_value_is_read_as_written_or_refused(
    tmp_path_factory: pytest.TempPathFactory, value: Any, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    row = {"a": value}
    path.write_text(junk_json(row if suffix == "jsonl" else [row]), encoding="utf-8")
    found: list[Any] = []
    if refused(lambda: found.extend(read_table(path, EXPECTED)), path.name) is None:
        assert [one for _, one in found] == [row]
        junk_json(row).encode()
        assert json.dumps(row, ensure_ascii=False, allow_nan=False).encode()


@SMALL
@given(st.binary(max_size=40), st.sampled_from(["jsonl", "json"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, junk: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"bytes.{suffix}"
    path.write_bytes(b'[{"a": "' + junk + b'"}]' if suffix == "json" else b'{"a": "' + junk + b'"}\n')
    refused(lambda: list(read_table(path, EXPECTED)), path.name)


def test_the_source_of_a_language_is_its_file_or_the_whole_path(tmp_path: Path) -> None:
    assert language_source(str(tmp_path), "es") == str(tmp_path)
    for name in ("es.json", "es.jsonl"):
        (tmp_path / name).touch()
        assert language_source(str(tmp_path), "es") == tmp_path / name
        (tmp_path / name).unlink()


def test_two_files_of_one_language_are_refused(tmp_path: Path) -> None:
    for name in ("es.json", "es.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"es\.jsonl: es\.json is beside it, .*; remove the old one"):
        language_source(str(tmp_path), "es")

"""JSONL files and JSON lists: every object with its position, every bad line refused."""

from pathlib import Path

import pytest

from xlr.data.jsonfiles import language_source, read_objects
from xlr.errors import UserError

EXPECTED = "an object with a and b"


def read(path: Path, content: bytes) -> list[tuple[str, dict[str, object]]]:
    path.write_bytes(content)
    return list(read_objects(path, EXPECTED))


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
        ("x.jsonl", b'{"a": "\xff"}\n', r"x\.jsonl: not UTF-8"),
        ("x.json", b"[", r"x\.json: cannot be read as JSON"),
        (
            "x.json",
            b'{"a": 1}',
            r"x\.json: contains an object, not a list; each element must be an object with a and b",
        ),
        ("x.json", b"[{}, null]", r"x\.json: element 1: null, not an object with a and b"),
        ("x.json", b"[true]", r"x\.json: element 0: a boolean, not an object with a and b"),
    ],
)
def test_bad_content_is_refused_with_its_position(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path / name, content)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: cannot be read"):
        list(read_objects(tmp_path / name, EXPECTED))


def test_the_source_of_a_language_is_its_file_or_the_whole_path(tmp_path: Path) -> None:
    assert language_source(str(tmp_path), "es") == str(tmp_path)
    for name in ("es.json", "es.jsonl"):  # with both, JSONL is read
        (tmp_path / name).touch()
        assert language_source(str(tmp_path), "es") == tmp_path / name

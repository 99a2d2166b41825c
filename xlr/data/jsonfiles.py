"""Reads JSONL files and JSON lists of objects, each object with its position for error messages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from xlr.errors import UserError

Row: TypeAlias = dict[str, Any]

_JSON_TYPES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


def language_source(path: str, lang: str) -> Path | str:
    """The file `{lang}.jsonl` or `{lang}.json` in the folder `path`; `path` itself if the folder has neither."""
    files = [Path(path) / f"{lang}{suffix}" for suffix in (".jsonl", ".json")]
    return next((file for file in files if file.is_file()), path)


def read_objects(path: Path, expected: str) -> Iterator[tuple[str, Row]]:
    """Read a JSONL file if the name ends in .jsonl, else a JSON list; see `read_jsonl`."""
    return read_jsonl(path, expected) if path.suffix == ".jsonl" else read_json_list(path, expected)


def read_jsonl(path: Path, expected: str) -> Iterator[tuple[str, Row]]:
    """Read the objects of a JSONL file; empty lines are skipped.

    Args:
        expected: what a row must be, for error messages, for example "an object with prompt, chosen and rejected".

    Yields:
        `(position, object)`; the position is `path:line`.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    position = f"{path}:{number}"
                    yield position, _object(_parsed(line, position), position, expected)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def read_json_list(path: Path, expected: str) -> Iterator[tuple[str, Row]]:
    """Read the objects of a JSON list; see `read_jsonl`.

    Yields:
        `(position, object)`; the position is the path and the index of the element.

    Raises:
        UserError: the file cannot be read or is not a JSON list, or an element is not an object.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: contains {_json_type(rows)}, not a list; each element must be {expected}")
    for index, row in enumerate(rows):
        position = f"{path}: element {index}"
        yield position, _object(row, position, expected)


def _parsed(line: str, position: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{position}: not valid JSON ({error.msg} at column {error.colno}); fix or remove the line"
        ) from error


def _object(value: Any, position: str, expected: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{position}: {_json_type(value)}, not {expected}")
    return value


def _json_type(value: Any) -> str:
    return _JSON_TYPES.get(type(value), "null")

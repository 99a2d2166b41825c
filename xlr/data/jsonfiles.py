"""Reads JSONL files and JSON lists of objects, each object with its position for error messages.

Python's reader takes more than JSON, and in silence: of two equal keys the last, NaN, numbers of any length, halves of
surrogate pairs. All of these are refused here.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from xlr.errors import UserError
from xlr.foreign.texts import MIB, brief, decoded_lines, open_file, read, surrogate_in

Row: TypeAlias = dict[str, Any]

_LARGEST_LIST = 256 * MIB
_LONGEST_NUMBER = 40  # in characters
_DEEPEST = 100
_TOO_DEEP = f"is nested more than {_DEEPEST} levels deep; remove levels"

_JSON_TYPES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


def read_jsonl(path: Path, expected: str) -> Iterator[tuple[str, Row]]:
    """Read the objects of a JSONL file; empty lines are skipped.

    Args:
        expected: what a row must be, for error messages, for example "an object with prompt, chosen and rejected".

    Yields:
        `(position, object)`; the position is `path:line`.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object.
    """
    with open_file(path) as file:
        for number, line in enumerate(decoded_lines(file, path), start=1):
            if text := line.strip():
                position = f"{path}:{number}"
                yield position, _object(parse(text, position), position, expected)


def read_json_list(path: Path, expected: str) -> Iterator[tuple[str, Row]]:
    """Read the objects of a JSON list; see `read_jsonl`.

    Yields:
        `(position, object)`; the position is the path and the index of the element.

    Raises:
        UserError: the file cannot be read or is not a JSON list, or an element is not an object.
    """
    rows = _loaded(read(path, _LARGEST_LIST), str(path))
    if not isinstance(rows, list):
        _require_sound(rows, str(path))
        raise UserError(f"{path}: contains {_json_type(rows)}, not a list; each element must be {expected}")
    for index, row in enumerate(rows):
        position = f"{path}: element {index}"
        _require_sound(row, position)
        yield position, _object(row, position, expected)


def parse(text: str, position: str) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: it is not JSON, or has equal keys, NaN, numbers that are too large, or halves of surrogate pairs.
    """
    value = _loaded(text, position)
    _require_sound(value, position)
    return value


class _Fault(str):
    """Stands for a part of a JSON text that is refused: what is wrong with it, and what to do."""


def _loaded(text: str, position: str) -> Any:
    """The value of a JSON text, in which a `_Fault` stands for each part that is refused."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_int=_short, parse_constant=_constant)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise UserError(
            f"{position}: not valid JSON ({error.msg} at {line}column {error.colno}); fix or remove the line"
        ) from error
    except RecursionError as error:
        raise UserError(f"{position}: {_TOO_DEEP}") from error


def _unique(pairs: list[tuple[str, Any]]) -> Row | _Fault:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    return _Fault(f"has the key {brief(twice)} more than once; remove one of them")


def _short(digits: str) -> int | _Fault:
    if len(digits) <= _LONGEST_NUMBER:
        return int(digits)
    return _Fault(f"a number has {len(digits)} digits; write a shorter one, or put it in quotes")


def _constant(name: str) -> _Fault:
    return _Fault(f"{name} is not JSON; write null, or a number")


def _require_sound(value: Any, position: str) -> None:
    """Check that no part of a value is refused; names the key of the value in which it is."""
    inside = value.items() if isinstance(value, dict) else [("", value)]
    for key, part in inside:
        if fault := _fault(part) or _text_fault(key):
            raise UserError(f"{position}: {brief(key) + ': ' if key else ''}{fault}")


def _fault(value: Any) -> str | None:
    """What is wrong anywhere inside a value, which may be nested deep."""
    pending = [(value, 1)]
    while pending:
        part, depth = pending.pop()
        if depth > _DEEPEST:
            return _TOO_DEEP
        if isinstance(part, _Fault):
            return part
        if isinstance(part, str) and (fault := _text_fault(part)):
            return fault
        if isinstance(part, float) and not math.isfinite(part):
            return "a number is too large; write a smaller one"
        if isinstance(part, dict):
            pending += [(inside, depth + 1) for inside in (*part, *part.values())]
        elif isinstance(part, list):
            pending += [(inside, depth + 1) for inside in part]
    return None


def _text_fault(text: str) -> str | None:
    half = surrogate_in(text)
    return half and f"contains {half}, half of a surrogate pair; remove it, or write the whole character"


def _object(value: Any, position: str, expected: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{position}: {_json_type(value)}, not {expected}")
    return value


def _json_type(value: Any) -> str:
    return _JSON_TYPES.get(type(value), "null")

"""Checks of single fields of a row: ids and texts, from JSON, Parquet or a dataset."""

from typing import Any

from xlr.errors import UserError
from xlr.foreign.texts import brief, control_in, is_blank

_LONGEST_ID = 500  # in characters


def identifier(value: Any, position: str, key: str) -> str:
    """An id as text: a text on one line, or a whole number.

    Raises:
        UserError: it is empty, has control characters, is too long, or is of another type.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{position}: {key} is {brief(value)}; an id is a text or a whole number: write one of these")
    if is_blank(value) or len(value) > _LONGEST_ID:
        size = "empty" if is_blank(value) else f"longer than {_LONGEST_ID} characters"
        raise UserError(f"{position}: {key} is {size}; every row needs a short id of its own")
    if character := control_in(value):
        raise UserError(f"{position}: {key} contains the control character {character}; remove it")
    return value


def is_text(value: Any) -> bool:
    """True for a text with at least one visible character."""
    return isinstance(value, str) and not is_blank(value)


def require_no_nul(text: str, position: str, key: str) -> str:
    """The text, which tokenizers and other programs would end at a NUL character.

    Raises:
        UserError: it contains one.
    """
    if "\0" in text:
        raise UserError(f"{position}: {key} contains the control character \\u0000; remove it")
    return text

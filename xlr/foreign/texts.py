"""Texts and files from outside: how they are read, what is refused in them, and how they are shown."""

import codecs
import gzip
import json
import re
import stat
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from xlr.errors import UserError

MIB = 1 << 20
LONGEST_LINE = 16 * MIB

_NOT_LINES = "\x00-\x08\x0b-\x1f\x7f-\x9f"  # the control characters but for tab and line feed
_DIRECTIONS = "\u202a-\u202e\u2066-\u2069"  # these change the order in which the characters of a line are shown
_SURROGATES = "\ud800-\udfff"  # halves of a UTF-16 pair, which UTF-8 cannot hold
_CONTROL = re.compile(f"[{_NOT_LINES}\u2028\u2029{_DIRECTIONS}{_SURROGATES}]")
_CONTROL_OR_LINE = re.compile(f"[\t\n{_NOT_LINES}\u2028\u2029{_DIRECTIONS}{_SURROGATES}]")
_SURROGATE = re.compile(f"[{_SURROGATES}]")

_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"  # Hangul fillers and the empty Braille pattern
_JOINER = "\u200d"  # joins emoji, and letters of some scripts
# Joiners, vowels and final consonants of decomposed Korean, and colours of emoji.
_JOINED = re.compile("[\u200c\u200d\u1160-\u11ff\U0001f3fb-\U0001f3ff]")
_SHOWN_CHARACTERS = 80
_REASON_CHARACTERS = 300


def shown(text: str) -> str:
    r"""The text with control characters written out, as `\u001b`, so that a terminal does not interpret them.

    Tabs and line feeds stay. JSON stays the same JSON.
    """
    return _CONTROL.sub(lambda found: _code(found[0]), text)


def brief(value: Any) -> str:
    """A value as JSON for an error message, cut if it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        text = f"a large {type(value).__name__}"
    return cut(text)


def cut(text: str) -> str:
    """A name for an error message: on one line, control characters written out, and cut if it is long."""
    text = _CONTROL_OR_LINE.sub(lambda found: _code(found[0]), text[: _SHOWN_CHARACTERS + 1])
    return text if len(text) <= _SHOWN_CHARACTERS else f"{beginning(text, _SHOWN_CHARACTERS)}…"


def beginning(text: str, most: int) -> str:
    """The first characters of a text, without the last letter if its accents or vowel signs would be cut off."""
    end = most
    while 0 < end < len(text) and _belongs_together(text[end - 1], text[end]):
        end -= 1
    return text[: end or most]


def _belongs_together(before: str, after: str) -> bool:
    """Whether the second character is no letter of its own, but changes the first."""
    return before == _JOINER or unicodedata.category(after)[0] == "M" or bool(_JOINED.match(after))


def reason(error: BaseException) -> str:
    """The first line of an exception's message, or the exception's name if there is none."""
    lines = str(error).strip().splitlines()
    return shown(lines[0])[:_REASON_CHARACTERS] if lines else type(error).__name__


def control_in(text: str, lines: bool = False) -> str | None:
    """The first control character of the text, written out; None if there is none.

    Args:
        lines: allow tabs and line feeds.
    """
    found = (_CONTROL if lines else _CONTROL_OR_LINE).search(text)
    return found and _code(found[0])


def surrogate_in(text: str) -> str | None:
    """The first half of a surrogate pair, which no UTF-8 file can hold, written out; None if there is none."""
    found = _SURROGATE.search(text)
    return found and _code(found[0])


def is_blank(text: str) -> bool:
    """True if no character is visible: spaces, control characters, zero-width characters and lone accents only."""
    return not any(map(_visible, text))


class _Unzipped(gzip.GzipFile):
    """A compressed file, whose damage is bad input."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._path = path

    def read(self, size: int | None = -1) -> bytes:
        with self._as_bad_input():
            return super().read(size)

    def readline(self, size: int | None = -1) -> bytes:
        with self._as_bad_input():
            return super().readline(size)

    @contextmanager
    def _as_bad_input(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{self._path}: damaged gzip file ({reason(error)}); get or write it again") from error


def open_file(path: Path) -> BinaryIO:
    """Open a regular file. One whose name ends in .gz is unpacked.

    Raises:
        UserError: it is missing, cannot be read, or is a folder, a pipe or a device.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return cast(BinaryIO, _Unzipped(path)) if path.suffix == ".gz" else path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: the path contains NUL
        what = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({what}); check the path and its permissions") from error
    what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
    raise UserError(f"{path}: is {what}; name a regular file")


def read(path: Path, most_bytes: int) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: it cannot be read, is larger than `most_bytes`, or is not UTF-8; names the line.
    """
    with open_file(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise UserError(
            f"{path}: is larger than {most_bytes // MIB} MiB; make it smaller, or check that it is the right file"
        )
    return decoded(content, path)


def decoded(content: bytes, path: Path, line: int = 1) -> str:
    """The bytes as text; they begin in this line of the file.

    Raises:
        UserError: they are not UTF-8; names the line.
    """
    try:
        return content.removeprefix(codecs.BOM_UTF8 if line == 1 else b"").decode("utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def decoded_lines(file: BinaryIO, path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends.

    Raises:
        UserError: a line is not UTF-8, or longer than 16 MiB.
    """
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UserError(f"{path}:{number}: is longer than {LONGEST_LINE // MIB} MiB; write shorter lines")
        yield decoded(line, path, number)


def _code(character: str) -> str:
    return f"\\u{ord(character):04x}"


def _visible(character: str) -> bool:
    category = unicodedata.category(character)
    # Unassigned (Cn) and private (Co) characters count as visible: newer versions of Unicode assign letters.
    return (category[0] in "LNPS" or category in ("Cn", "Co")) and character not in _BLANK_LETTERS

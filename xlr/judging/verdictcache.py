"""A cache of verdicts by the content of their questions, so that no question is paid for twice.

The cache is a folder of JSONL files, which runs may share. Each process appends to a file of its own.
"""

import errno
import json
import math
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from xlr.errors import UserError
from xlr.records import Verdict
from xlr.run.files import sha256
from xlr.terminal.console import console


def content_key(question: Any) -> str:
    """The key of a question: a digest of the whole request to the judge."""
    return sha256(json.dumps(question, sort_keys=True))


class VerdictCache:
    """The verdicts of a folder by key, and the tokens that they took.

    A line that is not a verdict is passed over with a message, so that its question is asked again.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.verdicts: dict[str, Verdict] = {}
        self.prompt_tokens = self.completion_tokens = 0
        for file in sorted(folder.glob("*.jsonl")):
            for key, verdict in _read(file):
                self._note(key, verdict)
        self._file: TextIO | None = None  # made with the first verdict, so that no process leaves an empty one
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> "VerdictCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def add(self, key: str, verdict: Verdict) -> None:
        """Add a verdict; it is on disk when this returns.

        Raises:
            UserError: the folder cannot be written any more.
        """
        if self._file is None:
            try:
                self._file = (self._folder / f"{secrets.token_hex(8)}.jsonl").open("a", encoding="utf-8")
            except OSError as error:
                raise self._unwritable(error) from error
        self._file.write(json.dumps({"key": key, **asdict(verdict)}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._note(key, verdict)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self._folder}: verdicts cannot be written there ({error.strerror}); set judge.cache to a folder that "
            "you can write to"
        )

    def _note(self, key: str, verdict: Verdict) -> None:
        self.verdicts[key] = verdict
        self.prompt_tokens += verdict.prompt_tokens
        self.completion_tokens += verdict.completion_tokens


def _read(file: Path) -> Iterator[tuple[str, Verdict]]:
    try:
        # The last piece is empty, or the incomplete line of a process that was killed.
        *lines, _ = file.read_bytes().split(b"\n") if file.is_file() else [b""]
    except OSError as error:
        console.print(f"  {file}: cannot be read ({error.strerror}); its questions are asked again")
        return
    damaged = []
    for number, line in enumerate(lines, 1):
        try:
            yield _verdict(line)
        except (ValueError, TypeError, RecursionError):
            damaged.append(number)
    if damaged:
        console.print(
            f"  {file}: {len(damaged)} lines are not verdicts, the first is line {damaged[0]}; their questions are "
            "asked again"
        )


def _verdict(line: bytes) -> tuple[str, Verdict]:
    """The key and the verdict in a line.

    Raises:
        ValueError, TypeError, RecursionError: it holds something else.
    """
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("key"), str):
        raise TypeError("no object with a key")
    key = row.pop("key")
    verdict = Verdict(**row)
    counts = verdict.prompt_tokens, verdict.completion_tokens
    sound = type(verdict.preference) in (int, float) and (
        math.isnan(verdict.preference) or 0 <= verdict.preference <= 1
    )
    if not sound or type(verdict.answer) is not str or any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("impossible values")
    return key, verdict

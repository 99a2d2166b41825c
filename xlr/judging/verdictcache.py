"""A cache of verdicts by the content of their questions, so that no question is paid for twice.

The cache is a folder of JSONL files, which runs may share. Each process appends to a file of its own.
"""

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from xlr.errors import UserError
from xlr.records import Verdict
from xlr.run.files import sha256


def content_key(question: Any) -> str:
    """The key of a question: a digest of the whole request to the judge."""
    return sha256(json.dumps(question, sort_keys=True))


class VerdictCache:
    """The verdicts of a folder by key, and the tokens that they took.

    Raises:
        UserError: a line is not a verdict, or the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.verdicts: dict[str, Verdict] = {}
        self.prompt_tokens = self.completion_tokens = 0
        for file in sorted(folder.glob("*.jsonl")):
            for key, verdict in _read(file):
                self._note(key, verdict)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"{secrets.token_hex(8)}.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{folder}: verdicts cannot be written there ({error.strerror}); set judge.cache to a folder that you "
                "can write to"
            ) from error

    def __enter__(self) -> "VerdictCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        path = Path(self._file.name)
        if path.stat().st_size == 0:
            path.unlink()

    def add(self, key: str, verdict: Verdict) -> None:
        """Add a verdict; it is on disk when this returns."""
        self._file.write(json.dumps({"key": key, **asdict(verdict)}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._note(key, verdict)

    def _note(self, key: str, verdict: Verdict) -> None:
        self.verdicts[key] = verdict
        self.prompt_tokens += verdict.prompt_tokens
        self.completion_tokens += verdict.completion_tokens


def _read(file: Path) -> Iterator[tuple[str, Verdict]]:
    # The last piece is empty, or the incomplete line of a process that was killed.
    *lines, _ = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            yield row.pop("key"), Verdict(**row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{file}:{number}: not a verdict ({error}); remove the line, and its question is asked again"
            ) from error

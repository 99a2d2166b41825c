"""Verdicts by the content of their questions, so that none is paid twice: lines that processes append to files of
their own in one folder, which runs may share."""

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
    """The key of a question: of everything that is sent to the judge."""
    return sha256(json.dumps(question, sort_keys=True))


class VerdictCache:
    """All verdicts of a folder. `add` writes a line and has it on the disk before it returns.

    Raises:
        UserError: a line that is no verdict, or a folder that cannot be written.
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
                f"{folder}: verdicts cannot be kept there ({error.strerror}); name a folder that you can write in "
                "judge.cache"
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
        """Keep a verdict."""
        self._file.write(json.dumps({"key": key, **asdict(verdict)}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._note(key, verdict)

    def _note(self, key: str, verdict: Verdict) -> None:
        self.verdicts[key] = verdict
        self.prompt_tokens += verdict.prompt_tokens
        self.completion_tokens += verdict.completion_tokens


def _read(file: Path) -> Iterator[tuple[str, Verdict]]:
    *lines, _ = file.read_text(encoding="utf-8").split("\n")  # what follows the last one a killed process was writing
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            yield row.pop("key"), Verdict(**row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{file}:{number}: not a verdict ({error}); remove the line: its question is then asked again"
            ) from error

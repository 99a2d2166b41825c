"""Preference sets: prompts with a chosen and a rejected answer, from a JSONL or Parquet file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlr.data.jsonfiles import Row, read_jsonl
from xlr.errors import UserError
from xlr.records import Message

_EXPECTED = "an object with prompt, chosen and rejected"


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt and two answers to it, of which the chosen one is better."""

    id: str
    prompt: list[Message]
    chosen: str
    rejected: str


def load_preferences(path: str) -> list[Preference]:
    """Read a preference set with the columns prompt, chosen and rejected, and optionally id.

    Each of the three is a string or a list of messages. Some published sets repeat the prompt in chosen and rejected;
    only the last message of those is used. A row without id gets its index as id.

    Raises:
        UserError: the file cannot be read or has no rows, or a field of a row is missing or empty.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file; preferences are a JSONL or Parquet file with prompt, chosen, rejected")
    rows = _parquet_rows(file) if file.suffix == ".parquet" else read_jsonl(file, _EXPECTED)
    preferences = [_preference(row, index, position) for index, (position, row) in enumerate(rows)]
    if not preferences:
        raise UserError(f"{path}: contains no preferences")
    return preferences


def _parquet_rows(file: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a Parquet file ({str(error).splitlines()[0]})") from error
    for index, row in enumerate(table.to_pylist()):
        yield f"{file} row {index}", row


def _preference(row: Row, index: int, position: str) -> Preference:
    chosen, rejected = (_messages(row.get(side), f"{position}: {side}", "assistant") for side in ("chosen", "rejected"))
    prompt = _messages(row.get("prompt"), f"{position}: prompt", "user")
    return Preference(str(row.get("id", index)), prompt, chosen[-1]["content"], rejected[-1]["content"])


def _messages(value: Any, position: str, role: str) -> list[Message]:
    """A field as messages; `role` is the role of a string, and of messages without one."""
    turns = [{"role": role, "content": value}] if isinstance(value, str) else value
    if not isinstance(turns, list) or not turns:
        raise UserError(
            f"{position}: missing or empty; it must be a string or a list of messages with role and content"
        )
    messages: list[Message] = []
    for turn in turns:
        content = turn.get("content") if isinstance(turn, dict) else None
        if not isinstance(content, str) or not content.strip():
            raise UserError(f"{position}: a message has no content; every message needs a role and a content")
        messages.append({"role": str(turn.get("role", role)), "content": content})
    return messages

"""Atomic writing of files, reading, and digests.

Every file is written under a temporary name, flushed and renamed, so no file is incomplete if the process dies.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xlr.errors import UserError

BLOCK_BYTES = 1 << 20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. On success it is flushed and renamed to `path`, on failure removed.

    Raises:
        UserError: the disk or quota is full.
    """
    # Random, because processes on different nodes can have the same process id.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        for file in [temporary] if temporary.is_file() else temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{path}: cannot be written, {os.strerror(error.errno).lower()}; free space and start again: finished "
                "work is kept"
            ) from error
        raise
    finally:
        remove(temporary)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """A value as the text of a JSON file."""
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file that xlr wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(data: bytes | str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()

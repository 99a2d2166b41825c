"""Atomic writing of files, and reading them back.

Every file is written under a temporary name, flushed and renamed, so no file is incomplete if the process dies.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from xlr.errors import UserError
from xlr.leases import lease, process

_SEAL = "seal"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. On success it is flushed and renamed to `path`, on failure removed.

    If another process has taken one of this process's leases, this process ends before it renames.

    Raises:
        UserError: the disk or quota is full.
    """
    temporary = path.with_name(f".{path.name}.{process.token()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        for file in [temporary] if temporary.is_file() else temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        lease.require_held()  # if this process was stopped for long, another may be writing the same file
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


def tidy(folder: Path, pattern: str = "*") -> None:
    """Remove temporary files and folders of `atomic_path` whose writers are dead.

    Args:
        pattern: only those of files with matching names.
    """
    for temporary in folder.glob(f".{pattern}.*.tmp"):
        with suppress(FileNotFoundError):  # its writer has just finished
            if not process.may_be_alive(temporary.suffixes[-2][1:], temporary.stat().st_mtime):
                remove(temporary)


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


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a digest of itself, by which `read_json` notices damage."""
    return {**value, _SEAL: _seal_of(value)}


def _seal_of(value: Mapping[str, Any]) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=str))


def read_json(path: Path, kind: Any = Any, remedy: str = "delete it, and start again") -> Any:
    """Read a JSON file that xlr wrote.

    Args:
        kind: the type of its content.
        remedy: what to do if it is damaged, for the message.

    Raises:
        UserError: it cannot be read, its content is of another type, or it has changed since it was sealed.
    """
    try:
        text = path.read_bytes()
        _adapter(kind).validate_json(text)
        value = json.loads(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"{path}: damaged ({where + ': ' if where else ''}{problem['msg']}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from error
    if isinstance(value, dict) and _SEAL in value:
        content = {key: own for key, own in value.items() if key != _SEAL}
        if _seal_of(content) != value[_SEAL]:
            raise UserError(f"{path}: damaged (its content does not match its digest); {remedy}")
    return value


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def sha256(data: bytes | str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()

"""Digests of content. The digest of a large file is remembered, so that a model is read once and not at every start."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from typing_extensions import TypedDict

from xlr.errors import UserError
from xlr.run.files import read_json, sha256, write_json

_BLOCK_BYTES = 1 << 20
_REMEMBERED_BYTES = 1 << 20  # smaller files are read faster than their note
_SETTLED_SECONDS = 2  # a file that changed this recently may change again without a new time
_THREADS = 8


class _Note(TypedDict):
    """A remembered digest. It holds while all other values are those of the file."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    digest: str


def file_digest(path: Path, fresh: bool = False) -> str:
    """SHA-256 of a file's content in hexadecimal.

    Args:
        fresh: read the file even if its digest is remembered.
    """
    status = path.stat()
    if status.st_size < _REMEMBERED_BYTES:
        return _read(path)
    note = {
        "inode": status.st_ino,
        "size": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "changed_ns": status.st_ctime_ns,
    }
    memory = _memory(path)
    known = None if fresh else _recall(memory)
    if known is not None and all(known[key] == value for key, value in note.items()):  # type: ignore[literal-required]
        return known["digest"]
    digest = _read(path)
    if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS:
        _remember(memory, note | {"digest": digest})
    return digest


def file_digests(paths: list[Path], fresh: bool = False) -> list[str]:
    """`file_digest` of several files, read at the same time."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda path: file_digest(path, fresh), paths))


def content_digest(path: Path) -> str:
    """A digest of a file, or of the names and contents of all files in a folder but for hidden ones."""
    if path.is_file():
        return file_digest(path)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file.relative_to(path))]
    digests = file_digests(files)
    return sha256("\n".join(f"{file.relative_to(path)} {own}" for file, own in zip(files, digests, strict=True)))


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _read(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _memory(path: Path) -> Path:
    """The file that remembers a digest. It is the user's own: a run directory may come from somebody else."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "xlr" / "digests" / f"{sha256(str(path.resolve()))}.json"


def _recall(memory: Path) -> _Note | None:
    try:
        note: _Note = read_json(memory, _Note)
    except UserError:  # absent or damaged; the file is read again
        return None
    return note


def _remember(memory: Path, note: dict[str, object]) -> None:
    try:
        write_json(memory, note)
    except (OSError, UserError):  # a home folder that is full or read-only costs time, nothing else
        return

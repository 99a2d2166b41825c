"""Checkpoints are pickles, and opening a pickle can execute code. Only those that hold data are opened.

torch can check a pickle without executing it (`weights_only`). DeepSpeed opens its checkpoints without this check, so
it is made beforehand, with a message that names the file, and forced on every later `torch.load` of the process.
"""

import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from xlr.errors import UserError

# Beside the pickles, DeepSpeed writes these. xlr neither reads nor runs them.
_IGNORED = ("latest", "latest_universal", "zero_to_fp32.py", "zero_to_torch.py")


def forbid_code(classes: Sequence[type]) -> None:
    """From now on, `torch.load` accepts only tensors, plain values and these classes, whatever its callers ask for."""
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals(list(classes))


def require_data(folder: Path) -> None:
    """Check that the files of a checkpoint hold only what `forbid_code` allows. Executes nothing.

    Raises:
        UserError: a file holds something else, is damaged, or is a link; names the file and what it holds.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            _refuse(folder, path, "is a link or a special file")
        if path.is_file() and path.name not in _IGNORED:
            _require_data_file(folder, path)


def _require_data_file(folder: Path, path: Path) -> None:
    try:
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # a damaged or malicious file can fail in any way
        _refuse(folder, path, f"is damaged or not in the format of torch.save ({_first_line(error)})", error)
    if others:
        _refuse(folder, path, f"holds {', '.join(sorted(others))}, which would execute code when it is opened")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        _refuse(folder, path, f"is damaged ({_first_line(error)})", error)
    # DeepSpeed makes file names of the keys when it converts a checkpoint.
    outside = next((key for key in _keys(content) if "/" in key or "\0" in key or key in (".", "..")), None)
    if outside is not None:
        _refuse(folder, path, f"holds the name {outside!r}, which would lead to another folder")


def require_intact(folder: Path, part: int, parts: int) -> None:
    """Check the checksums that torch.save wrote for every tensor, and that torch.load does not compare.

    Args:
        part: which part of the files to read, from 0.
        parts: number of parts.

    Raises:
        UserError: a file has changed since it was written.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in _IGNORED]
    for path in files[part::parts]:
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except zipfile.BadZipFile as error:
            _refuse(folder, path, f"is damaged ({_first_line(error)})", error)
        if damaged is not None:
            _refuse(folder, path, f"has changed since it was written: {damaged} does not match its checksum")


def _keys(value: Any) -> Iterator[str]:
    """All strings that are keys of dictionaries in a nested value."""
    waiting = [value]
    seen = set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            yield from (key for key in item if isinstance(key, str))
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item


def _refuse(folder: Path, path: Path, reason: str, cause: Exception | None = None) -> NoReturn:
    raise UserError(
        f"{path}: {reason}; xlr writes no such checkpoint. If somebody else wrote it, do not use this run directory. "
        f"Else delete {folder} and start again: training continues from the previous checkpoint, or from the first "
        "step if there is none"
    ) from cause


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Looks into the folder of a model before a library opens it: what is there, and whether it can be read.

A hub name is left to the libraries, which download what they need.
"""

import json
from pathlib import Path
from typing import Any

from xlr.errors import UserError

_CONFIG = "config.json"
_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_MOST_BYTES = 1 << 24  # of a JSON file; published ones have some kilobytes, an index of weights some megabytes
_SHOWN = 200


def reason(error: BaseException) -> str:
    """An error of a library in a few words: its first line, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    said = " ".join(lines[:2]) if lines and lines[0].endswith(":") else (lines or [""])[0]
    return said[:_SHOWN] or type(error).__name__


def require_folder(model: str | Path) -> None:
    """Check that a path leads to a folder. A hub name passes.

    Raises:
        UserError: there is no such folder, or it is something else.
    """
    path = Path(model)
    try:
        if path.is_dir():
            next(path.iterdir(), None)
            return
        if path.is_file():
            raise UserError(f"{model}: a file; name the folder that holds it, with config.json and safetensors weights")
        if path.is_symlink():
            raise UserError(f"{model}: a symbolic link that leads nowhere or in a circle; correct it")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(model)!r}: cannot be opened ({reason(error)}); correct the path or its rights"
        ) from error
    if str(model).startswith(("/", ".", "~")) or str(model).partition("@")[0].count("/") > 1:
        raise UserError(
            f"{model}: no such folder; name a folder that is there, or a Hugging Face hub name (NAME/MODEL)"
        )


def named(model: str | Path) -> tuple[str, str]:
    """A model as the libraries take it: its folder, or its hub name; and the revision after the name's @."""
    name, _, revision = str(model).partition("@")
    return (str(model), "main") if Path(model).is_dir() else (name, revision or "main")


def find(model: str | Path, name: str) -> Path | None:
    """A file of a model, or None if the model does not have it. A file of a hub name is downloaded."""
    folder = Path(model)
    if folder.is_dir():
        there = folder / name
        return there if there.exists() or there.is_symlink() else None
    from transformers.utils import cached_file

    repository, revision = named(model)
    try:
        found = cached_file(repository, name, revision=revision)
    except OSError:
        return None
    return Path(found) if found else None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object strictly: UTF-8, no NaN (some models hold Infinity), no duplicate keys.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: not a file, or a symbolic link that leads nowhere; get the model again")
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: larger than {_MOST_BYTES >> 20} MiB, which no such file is; get the model again")
        value = json.loads(
            path.read_text(encoding="utf-8"), parse_constant=_constant, object_pairs_hook=_without_duplicates
        )
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({reason(error)}); correct it, or get the model again"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; get the model again")
    return value


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def load_config(model: str | Path) -> Any:
    """Load a model's config.json.

    Raises:
        UserError: there is no model of this name, or its config.json is unusable.
    """
    from transformers import AutoConfig

    require_folder(model)
    path = find(model, _CONFIG)
    if path is None:
        raise UserError(
            f"{model}: not a model that can be opened, because it has no config.json; name a Hugging Face folder with "
            "config.json and safetensors weights, or a hub name that this machine can reach"
        )
    given = read_object(path)
    repository, revision = named(model)
    try:
        return AutoConfig.from_pretrained(repository, revision=revision, trust_remote_code=False)
    except Exception as error:  # transformers raises anything for values that are not as it expects
        if "auto_map" in given:
            raise UserError(
                f"{path}: names code of its own (auto_map), which xlr does not execute; use a model whose "
                "architecture transformers contains"
            ) from error
        raise UserError(
            f"{path}: not a model that can be opened ({reason(error)}); correct config.json, or get the model again"
        ) from error


def require_weights(model: str | Path) -> None:
    """Check that a folder holds whole safetensors weights and no adapter. Only the files' headers are read.

    Raises:
        UserError: there are none, or a file is missing, damaged or cut off.
    """
    folder = Path(model)
    if find(model, "adapter_config.json"):
        raise UserError(
            f"{model}: holds an adapter (adapter_config.json), which xlr does not apply; merge it into its base model "
            "and save that (merge_and_unload in PEFT), or remove the file if the weights are merged already"
        )
    if not folder.is_dir():
        return
    for name in _weight_names(folder):
        _require_whole(folder / name)


def _weight_names(folder: Path) -> list[str]:
    if (folder / _ONE_FILE).is_file():
        return [_ONE_FILE]
    index = folder / _INDEX
    if not index.is_file():
        pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
        if pickled:
            raise UserError(
                f"{folder}: holds pickled weights only ({pickled[0]}), which can execute code when they are opened; "
                "save the model as safetensors"
            )
        raise UserError(f"{folder}: holds no {_ONE_FILE} and no {_INDEX}; get the model's weights as safetensors")
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index}: holds no weight_map; get the model again")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(
                f"{index}: names {str(name)[:_SHOWN]!r}, which is no file of the folder; get the model again"
            )
    return sorted(set(names.values()))


def _require_whole(file: Path) -> None:
    """Check a safetensors file's header against its size.

    Raises:
        UserError: they do not fit.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            if not opened.keys():
                raise UserError(f"{file}: holds no weights; get the file again")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: missing, damaged or cut off ({reason(error)}); get the file again") from error


def weight_bytes(folder: Path) -> int:
    """Size of a model folder's weights; 0 if there are none, as for a hub name."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))

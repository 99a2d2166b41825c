"""Takes finished work over from another run by reference: hard links where the file system has them, else copies.

Files of artefacts are never changed in place, so runs that share one do not disturb each other.
"""

import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from xlr.errors import UserError
from xlr.run.artifact import Artifact
from xlr.run.files import atomic_path, sealed, write_json
from xlr.run.manifests import (
    Manifest,
    differences,
    kept_folder,
    manifest_path,
    part_of,
    read_manifest,
    settings_of_parts,
)


def take(target: Artifact, folder: Path) -> list[str] | None:
    """Take over an artefact, or those of its languages, that another run made from the same settings and inputs.

    Languages are kept aside for the target's stage, which makes the others; see `Kept`.

    Args:
        target: an unfinished artefact.
        folder: the artefact of the other run.

    Returns:
        The languages that were taken over; an empty list if none was, None if the whole artefact was.

    Raises:
        UserError: a file of the other run is missing or has changed.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return []
    if same(target, manifest):
        take_whole(target, folder, manifest)
        return None
    if parts := same_parts(target, manifest):
        take_parts(target, folder, manifest, parts)
    return parts


def same(target: Artifact, manifest: Manifest) -> bool:
    """Whether a manifest is of an artefact from the same settings and inputs."""
    return manifest["settings"] == target.recorded_settings and manifest["inputs"] == target.input_digests


def take_whole(target: Artifact, folder: Path, manifest: Manifest) -> None:
    """Take over an artefact of another run.

    Raises:
        UserError: a file of the other run is missing or has changed.
    """
    _link(target, folder, target.folder, manifest, manifest["files"])
    for name in manifest["records"]:
        shutil.copy2(folder.with_name(name), target.folder.with_name(name))  # such files grow in place
    write_json(manifest_path(target.folder), manifest)


def take_parts(target: Artifact, folder: Path, manifest: Manifest, parts: Collection[str]) -> None:
    """Keep these languages of another run's artefact aside for the stage that makes the target.

    Raises:
        UserError: a file of the other run is missing or has changed.
    """
    kept = kept_folder(target.run, target.folder)
    _link(target, folder, kept, manifest, [name for name in manifest["files"] if part_of(name) in parts])
    recorded = {part: record for part, record in manifest["parts"].items() if part in parts}
    facts = {name: value for name, value in manifest.items() if name not in ("parts", "seal")}
    write_json(manifest_path(kept), sealed({**facts, "parts": recorded}))


def same_parts(target: Artifact, manifest: Manifest) -> list[str]:
    """The languages that a manifest has from the same settings and inputs."""
    if settings_of_parts(manifest["settings"]) != target.part_settings:
        return []
    recorded = manifest.get("parts", {})
    return [
        part for part, inputs in target.part_inputs.items() if part in recorded and recorded[part]["inputs"] == inputs
    ]


def _link(target: Artifact, folder: Path, into: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Make a folder with these files of another run's artefact, after comparing them with its manifest.

    Raises:
        UserError: one is missing or has changed.
    """
    files = {name: manifest["files"][name] for name in names}
    for path, difference in differences(folder, files):
        run = folder.parents[len(target.folder.relative_to(target.run).parts) - 1]
        raise UserError(f"{path}: {difference}; `xlr verify {run}` says more")
    with atomic_path(into) as temporary:
        temporary.mkdir()
        for name in files:
            link(folder / name, temporary / name)


def link(source: Path, target: Path) -> None:
    """Make a file the same as another one, without copying its content where the file system allows that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


class Kept:
    """The languages of an unfinished artefact that its run took over from another.

    Raises:
        UserError: a file of theirs is missing or has changed.
    """

    def __init__(self, target: Artifact):
        folder = kept_folder(target.run, target.folder)
        for fault in kept_faults(target):
            raise UserError(fault)
        manifest = read_manifest(folder)
        self.languages = same_parts(target, manifest) if manifest is not None else []
        self.facts: Any = manifest["facts"] if manifest is not None else {}
        """The facts of the artefact that they come from."""
        names = _kept_names(manifest) if manifest is not None else []
        self._folder = folder
        self.files = [folder / name for name in names if part_of(name) in self.languages]

    def link_into(self, folder: Path) -> None:
        """Put their files into the artefact's new folder."""
        for file in self.files:
            link(file, folder / file.relative_to(self._folder))


def kept_faults(target: Artifact) -> Iterator[str]:
    """What is wrong with the files of the languages that an unfinished artefact was given, each with its remedy."""
    folder = kept_folder(target.run, target.folder)
    manifest = read_manifest(folder)
    if manifest is not None:
        for path, difference in differences(folder, {name: manifest["files"][name] for name in _kept_names(manifest)}):
            yield f"{path}: {difference}; delete {manifest_path(folder)} to make these languages again"


def _kept_names(manifest: Manifest) -> list[str]:
    return [name for name in manifest["files"] if part_of(name) in manifest["parts"]]

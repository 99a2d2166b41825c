"""Runs that share work (`reuse`): what one has made, the others take over; no two make the same artefact."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from xlr.errors import UserError
from xlr.leases import lease
from xlr.run import reuse
from xlr.run.artifact import Artifact
from xlr.run.directory import RunDir
from xlr.run.files import sha256
from xlr.run.manifests import Manifest, kept_folder, manifest_path, read_manifest
from xlr.terminal.console import console


class _Found(NamedTuple):
    """A finished artefact of another run."""

    run: Path
    folder: Path
    manifest: Manifest


def runs_in(place: Path) -> list[Path]:
    """The run directory itself, or the run directories in a folder."""
    configs = [place / "config.yaml"] if (place / "config.yaml").is_file() else sorted(place.glob("*/config.yaml"))
    return [config.parent for config in configs]


def key(target: Artifact, inputs: object) -> str:
    """A digest of what decides an artefact: equal artefacts in the same place of two runs have equal keys.

    Args:
        inputs: what stands for its inputs, such as their digests.
    """
    place = str(target.folder.relative_to(target.run))
    return sha256(json.dumps([place, target.recorded_settings, inputs], sort_keys=True))


def take_over(target: Artifact, places: Sequence[str]) -> bool:
    """Take over an unfinished artefact from a run that has made it from the same settings and inputs.

    If no run has all of it, take over the languages of the run that has most, for the stage that makes the others. A
    run with damaged files is left out and named.

    Args:
        places: run directories, and folders of run directories.

    Returns:
        Whether the whole artefact was taken over.
    """
    if None in target.input_digests.values():
        return False
    found = [own for own in _finished(target, places) if _agrees(target, own.manifest)]
    if not found:
        return False
    with lease.awaited(RunDir(target.run).leases, f"taking/{target.title}", target.title):
        return read_manifest(target.folder) is not None or _taken_from(target, found)


def source(target: Artifact, places: Sequence[str]) -> Path | None:
    """A run that has made the same artefact, if there is one."""
    found = (own.run for own in _finished(target, places) if reuse.same(target, own.manifest))
    return next(found, None)


def _agrees(target: Artifact, manifest: Manifest) -> bool:
    return reuse.same(target, manifest) or bool(reuse.same_parts(target, manifest))


def _taken_from(target: Artifact, found: Sequence[_Found]) -> bool:
    for other in found:
        if reuse.same(target, other.manifest):
            with _naming_damage(target, other.run):
                reuse.take_whole(target, other.folder, other.manifest)
                target.remove_pieces()
                console.print(f"{target.title}: taken over from {other.run}")
                return True
    # Pieces of an interrupted start were planned with the languages that it had taken over.
    if any(target.pieces_folders()) or manifest_path(kept_folder(target.run, target.folder)).is_file():
        return False
    other = max(found, key=lambda one: len(reuse.same_parts(target, one.manifest)))
    if parts := reuse.same_parts(target, other.manifest):
        with _naming_damage(target, other.run):
            reuse.take_parts(target, other.folder, other.manifest, parts)
            console.print(f"{target.title}: {', '.join(parts)} taken over from {other.run}")
    return False


def _finished(target: Artifact, places: Sequence[str]) -> Iterator[_Found]:
    """The finished artefacts of other runs in the target's place."""
    for run in dict.fromkeys(run for place in places for run in runs_in(Path(place))):
        folder, manifest = run / target.folder.relative_to(target.run), None
        if run.resolve() != target.run.resolve():
            with _naming_damage(target, run):
                manifest = read_manifest(folder)
        if manifest is not None:
            yield _Found(run, folder, manifest)


@contextlib.contextmanager
def _naming_damage(target: Artifact, run: Path) -> Iterator[None]:
    """Print what is wrong with another run's files instead of raising it: the artefact is then made again."""
    try:
        yield
    except UserError as error:
        console.print(f"{target.title}: not taken over from {run}: {error}")


@contextlib.contextmanager
def alone(target: Artifact, places: Sequence[str]) -> Iterator[None]:
    """Hold what keeps runs that share with this one from making the same artefact; wait while one of them makes it.

    Args:
        places: as for `take_over`; those that this process cannot write to are left out.
    """
    name = f"shared/{key(target, target.input_digests)[:32]}"
    with contextlib.ExitStack() as stack:
        if places:
            own = {target.run, *(Path(place) for place in places if os.access(place, os.W_OK))}
            for place in sorted({path.resolve() for path in own}):  # all processes in one order: none waits in a circle
                stack.enter_context(lease.awaited(RunDir(place).leases, name, target.title))
        yield

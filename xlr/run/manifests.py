"""The manifest of a finished artefact, and reading what it lists.

The manifest is written last, so an artefact with a manifest is complete. Who reads an artefact reads the files of its
manifest, after comparing their digests.
"""

import fnmatch
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from xlr.errors import UserError
from xlr.run.digests import file_digests
from xlr.run.files import read_json, sha256
from xlr.run.rows import Row, read_rows

MANIFEST = ".manifest.json"  # follows the name of the artefact's folder


class PartRecord(TypedDict):
    """One language of an artefact whose languages stand on their own."""

    inputs: dict[str, str]
    """Digest of each input of this language."""
    digest: str
    """Digest of its files together."""


class Manifest(TypedDict):
    """The file `NAME.manifest.json` beside a finished artefact."""

    stage: str
    rows: int
    seconds: float
    time: dict[str, float]
    """Seconds by activity."""
    processors: dict[str, float]
    """Peak number of CPUs and GPUs in use."""
    memory: NotRequired[int]
    """Peak memory in bytes of a process that computed; 0 where it is not known. Earlier versions did not record it."""
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
    parts: NotRequired[dict[str, PartRecord]]
    """Language -> what decides its rows, where languages stand on their own."""
    seal: str
    """Digest of this manifest."""


def settings_of_parts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an artefact that decide each of its languages."""
    return {name: value for name, value in settings.items() if name != "languages"}


def part_of(file: str) -> str:
    """The language of a file `{lang}-{number}.parquet` or `{lang}.json` of an artefact or of a folder in it."""
    path = Path(file)
    return path.stem if path.suffix == ".json" else path.name.rsplit("-", 1)[0]


def files_digest(files: Mapping[str, tuple[int, str]]) -> str:
    """A digest of files together, from their sizes and digests by name."""
    return sha256(json.dumps({name: digest for name, (_, digest) in files.items()}, sort_keys=True))


def kept_folder(run: Path, folder: Path) -> Path:
    """Where finished languages of an artefact wait that a run took over from another, until its stage uses them."""
    return run / "kept" / folder.relative_to(run)


def manifest_path(folder: Path) -> Path:
    """The path of an artefact's manifest, beside its folder."""
    return folder.with_name(folder.name + MANIFEST)


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


def parquet_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The Parquet files of a finished artefact whose names in it match, in the order of their names.

    Raises:
        UserError: see `verified`.
    """
    files = sorted(verified(folder).items())
    return [path for name, path in files if path.suffix == ".parquet" and fnmatch.fnmatch(name, pattern)]


def rows_of(folder: Path, row_type: type[Row], pattern: str = "*", part: str | None = None) -> list[Row]:
    """Read the records of a finished artefact, in the order of its files' names.

    Args:
        pattern: read only the Parquet files whose names in the artefact match it.
        part: read only those of this language.

    Raises:
        UserError: see `verified`.
    """
    files = (path for path in parquet_files(folder, pattern) if part is None or part_of(path.name) == part)
    return [row for path in files for row in read_rows(path, row_type)]


def json_of(folder: Path, name: str, kind: Any) -> Any:
    """The content of a JSON file of a finished artefact; None if the artefact has no such file.

    Raises:
        UserError: see `verified`; or the content is not of this type.
    """
    file = verified(folder).get(name)
    return read_json(file, kind, f"delete {manifest_path(folder)} to make the artefact again") if file else None

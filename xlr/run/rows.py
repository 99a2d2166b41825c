"""Reads and writes records (dataclasses) as Parquet files."""

import types
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from xlr.errors import UserError
from xlr.records import Message, RowKey
from xlr.run.files import atomic_path

Row = TypeVar("Row")

ROWS_PER_SHARD = 50_000
_STAMP = b"xlr.stamp"


def write_rows(path: Path, row_type: type[Row], rows: Iterable[Row], stamp: str | None = None) -> None:
    """Write records as one Parquet file, atomically.

    Args:
        stamp: text to store in the file's metadata; see `read_piece`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, schema = list(rows), _schema(row_type)
    # Not with dataclasses.asdict, which copies every token id of every row.
    table = pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)
    if stamp is not None:
        table = table.replace_schema_metadata({_STAMP: stamp})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_piece(
    path: Path, row_type: type[Row], stamps: Sequence[str], known: dict[int, int] | None = None
) -> list[Row] | None:
    """The records of a Parquet file with one of these stamps; None if it has none of them or is damaged or missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stamp = (pq.read_schema(path).metadata or {}).get(_STAMP, b"")
        return _read(path, row_type, known) if stamp in [own.encode() for own in stamps] else None
    except (OSError, pa.ArrowException, TypeError, ValueError):
        return None


def damaged_pieces(folder: Path) -> Iterator[Path]:
    """The Parquet files in a folder of pieces that cannot be read, or have no stamp."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in sorted(folder.glob("*.parquet")):
        try:
            table = pq.ParquetFile(file, page_checksum_verification=True).read()
        except (OSError, pa.ArrowException):
            yield file
            continue
        if _STAMP not in (table.schema.metadata or {}):
            yield file


def _schema(row_type: type) -> Any:
    import pyarrow as pa

    hints = typing.get_type_hints(row_type)
    return pa.schema([(field.name, _arrow_type(hints[field.name])) for field in fields(row_type)])


def _arrow_type(hint: Any) -> Any:
    import pyarrow as pa

    if isinstance(hint, types.GenericAlias):
        return pa.list_(_arrow_type(hint.__args__[0]))
    if hint is Message:
        return pa.struct([("role", pa.string()), ("content", pa.string())])
    return {str: pa.string(), int: pa.int64(), float: pa.float64()}[hint]


def read_rows(path: Path, row_type: type[Row], known: dict[int, int] | None = None) -> list[Row]:
    """Read the records of a Parquet file.

    Args:
        known: token ids of rows that were read before, if they are to be shared between several calls.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow as pa

    try:
        return _read(path, row_type, known)
    except (OSError, pa.ArrowException, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: damaged ({reason}); delete the manifest beside its folder to make it again"
        ) from error


def _read(path: Path, row_type: type[Row], known: dict[int, int] | None) -> list[Row]:
    import pyarrow.parquet as pq

    hints = typing.get_type_hints(row_type)
    names = [field.name for field in fields(row_type)]  # type: ignore[arg-type]
    numbers = {} if known is None else known  # share one int object per token id: 8 bytes per token instead of 36
    table = pq.ParquetFile(path, page_checksum_verification=True).read(columns=names)
    if not table.schema.equals(_schema(row_type)):
        raise ValueError(f"not the columns {', '.join(names)}")
    columns = table.to_pydict()
    for name in names:
        if hints[name] == list[int]:
            columns[name] = [list(map(numbers.setdefault, value, value)) for value in columns[name]]
    return [row_type(*values) for values in zip(*(columns[name] for name in names), strict=True)]


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

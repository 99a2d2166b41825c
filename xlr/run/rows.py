"""Reads and writes records (dataclasses) as Parquet files."""

import types
import typing
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeVar

from xlr.errors import UserError
from xlr.records import Message, RowKey
from xlr.run.files import atomic_path

Row = TypeVar("Row")

ROWS_PER_SHARD = 8192
_GROUP = 1024  # rows that are read together
_STAMP = b"xlr.stamp"
_KEY_COLUMNS = ("lang", "id", "sample")


def write_rows(path: Path, row_type: type[Row], rows: Iterable[Row], stamp: str | None = None) -> None:
    """Write records as one Parquet file, atomically.

    Args:
        stamp: text to store in the file's metadata; see `piece_table`.
    """
    write_stamped(path, table_of(row_type, list(rows)), stamp)


def table_of(row_type: type[Row], rows: Sequence[Row]) -> Any:
    """Records as an Arrow table."""
    import pyarrow as pa

    columns = schema(row_type)
    # Not with dataclasses.asdict, which copies every token id of every row.
    return pa.table({name: [getattr(row, name) for row in rows] for name in columns.names}, columns)


def write_stamped(path: Path, table: Any, stamp: str | None) -> None:
    """Write an Arrow table as one Parquet file, atomically; arguments as for `write_rows`."""
    write_table(path, table.replace_schema_metadata(None if stamp is None else {_STAMP: stamp}))


def write_table(path: Path, table: Any) -> None:
    """Write an Arrow table as one Parquet file, atomically. A part of it can be read without the rest."""
    import pyarrow.parquet as pq

    # Arrow is given an open file: resolving a path takes it a tenth of a millisecond.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True, row_group_size=_GROUP)


def piece_table(path: Path, row_type: type, stamps: Sequence[str]) -> Any:
    """The Arrow table of a Parquet file with one of these stamps; None if it has none, is damaged or is missing."""
    import pyarrow as pa

    try:
        table = _table(path, row_type)
    except (OSError, pa.ArrowException, TypeError, ValueError):
        return None
    stamp = (table.schema.metadata or {}).get(_STAMP, b"")
    return table if stamp in [own.encode() for own in stamps] else None


def damaged_pieces(folder: Path) -> Iterator[Path]:
    """The Parquet files in a folder of pieces that cannot be read, or have no stamp."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in sorted(folder.rglob("*.parquet")):
        try:
            table = pq.ParquetFile(file, page_checksum_verification=True).read()
        except (OSError, pa.ArrowException):
            yield file
            continue
        if _STAMP not in (table.schema.metadata or {}):
            yield file


def schema(row_type: type) -> Any:
    """The Arrow schema of a record's fields."""
    import pyarrow as pa

    hints = typing.get_type_hints(row_type)
    return pa.schema([(field.name, _arrow_type(hints[field.name])) for field in fields(row_type)])


def _arrow_type(hint: Any) -> Any:
    import pyarrow as pa

    if isinstance(hint, types.UnionType):  # such as float | None; every column may have nulls
        return _arrow_type(hint.__args__[0])
    if isinstance(hint, types.GenericAlias):
        return pa.list_(_arrow_type(hint.__args__[0]))
    if hint is Message:
        return pa.struct([("role", pa.string()), ("content", pa.string())])
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[hint]


def read_rows(path: Path, row_type: type[Row], rows: slice = slice(None)) -> list[Row]:
    """Read the records of a Parquet file.

    Args:
        rows: which of the records; all by default.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow as pa

    try:
        return records(_table(path, row_type, rows), row_type)
    except (OSError, pa.ArrowException, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: damaged ({reason}); delete the manifest beside its folder to make it again"
        ) from error


def _table(path: Path, row_type: type, rows: slice = slice(None)) -> Any:
    """The columns of a record's fields; raises an error of pyarrow, or a ValueError, if they cannot be read.

    Args:
        rows: which of the records; all by default. Other row groups than theirs are not read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, file = schema(row_type), pq.ParquetFile(path, page_checksum_verification=True)
    # A field with a default was added later: files of earlier versions do not have it.
    late = {
        field.name: field.default
        for field in fields(row_type)
        if field.default is not MISSING and field.name not in file.schema_arrow.names
    }
    groups, inside = _groups_of(file.metadata, rows)
    table = file.read_row_groups(groups, [name for name in columns.names if name not in late])[inside]
    for name, default in late.items():
        values = pa.array([default] * table.num_rows, columns.field(name).type)
        table = table.add_column(columns.get_field_index(name), columns.field(name), values)
    if not table.schema.equals(columns):
        raise ValueError(f"not the columns {', '.join(columns.names)}")
    return table


def _groups_of(metadata: Any, rows: slice) -> tuple[list[int], slice]:
    """The row groups of a Parquet file that hold these rows, and where the rows stand in them."""
    start, stop, _ = rows.indices(metadata.num_rows)
    ends = list(accumulate(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)))
    groups = [number for number, (first, end) in enumerate(pairwise([0, *ends])) if first < stop and start < end]
    before = ends[groups[0] - 1] if groups and groups[0] else 0
    return groups, slice(start - before, stop - before)


def records(table: Any, row_type: type[Row]) -> list[Row]:
    """The rows of an Arrow table as records. Token ids become arrays: 4 bytes a token, and no object for each."""
    hints = typing.get_type_hints(row_type)
    names = [field.name for field in fields(row_type)]  # type: ignore[arg-type]
    tokens = [name for name in names if hints[name] == Sequence[int]]
    columns = table.drop_columns(tokens).to_pydict()
    for name in tokens:
        columns[name] = list(_arrays(table[name]))
    return [row_type(*values) for values in zip(*(columns[name] for name in names), strict=True)]


def _arrays(column: Any) -> Iterator["array[int]"]:
    """The lists of an Arrow column of numbers in [0, 2^32)."""
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()  # those of a slice begin anywhere
        values = chunk.values.to_numpy()[offsets[0] : offsets[-1]].astype("uint32")
        ends = (offsets - offsets[0]).tolist()
        for start, end in pairwise(ends):
            yield array("I", values[start:end].tobytes())


def write_shards(folder: Path, prefix: str, row_type: type[Row], rows: Sequence[Row]) -> None:
    """Write records as `{prefix}-00000.parquet`, ..., with at most `ROWS_PER_SHARD` rows each."""
    for shard, start in enumerate(range(0, len(rows), ROWS_PER_SHARD)):
        write_rows(shard_path(folder, prefix, shard), row_type, rows[start : start + ROWS_PER_SHARD])


def read_keys(path: Path, rows: slice = slice(None), key_columns: Sequence[str] = _KEY_COLUMNS) -> list[RowKey]:
    """The values of these columns of rows of a Parquet file, as text; by default of all rows."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    groups, inside = _groups_of(file.metadata, rows)
    columns = file.read_row_groups(groups, list(key_columns))[inside].to_pydict()
    return [tuple(map(str, key)) for key in zip(*columns.values(), strict=True)]


def row_count(path: Path) -> int:
    """Number of rows of a Parquet file."""
    import pyarrow.parquet as pq

    count: int = pq.read_metadata(path).num_rows
    return count


def shard_path(folder: Path, prefix: str, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"{prefix}-{shard:05d}.parquet"


def write_shard(path: Path, table: Any, keys: Sequence[RowKey]) -> None:
    """Write responses as one Parquet file, and check that it holds exactly these rows, in this order.

    Args:
        keys: language, id and sample of each row, as text.

    Raises:
        RuntimeError: it does not; names the first row.
    """
    write_table(path, table.replace_schema_metadata(None))
    found = read_keys(path)
    if found != list(keys):
        wrong = next((own for own, key in zip(found, keys, strict=False) if own != key), None)
        raise RuntimeError(
            f"{path}: holds {len(found)} rows instead of {len(keys)}, or others"
            + (f", such as {' '.join(wrong)}" if wrong else "")
            + "; this is a bug in xlr, and the artefact was not kept"
        )


def require_each_once(folder: Path, wanted: Iterable[RowKey], key_columns: Sequence[str] = _KEY_COLUMNS) -> None:
    """Check that the Parquet files in a folder hold every wanted row exactly once, and no other row.

    Args:
        wanted: keys of the rows: the values of `key_columns`, as text.

    Raises:
        RuntimeError: a row is missing, duplicated or not wanted; names the first one.
    """
    expected, found = Counter(wanted), Counter[RowKey]()
    for file in sorted(folder.rglob("*.parquet")):
        found.update(read_keys(file, key_columns=key_columns))
    if found != expected:
        key = next(key for key in {**expected, **found} if found[key] != expected[key])
        raise RuntimeError(
            f"{folder}: holds the row {' '.join(key)} {found[key]} times, not {expected[key]} "
            f"({found.total()} rows, {expected.total()} expected); this is a bug in xlr, and the artefact was not kept"
        )

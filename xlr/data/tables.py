"""Rows of files: JSON lines, JSON lists, CSV, TSV and Parquet, each row with its position for error messages.

All but Parquet may be compressed with gzip. A byte order mark and Windows' line ends make no difference.
"""

import csv
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from xlr.data.jsonfiles import Row, read_json_list, read_jsonl
from xlr.errors import UserError
from xlr.foreign.texts import brief, decoded_lines, open_file, reason

_TEXTS = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*_TEXTS, *(f"{suffix}.gz" for suffix in _TEXTS), ".parquet")


def language_source(path: str, lang: str) -> Path | str:
    """The file `{lang}.jsonl`, or with another of `SUFFIXES`, in the folder `path`; `path` itself if it has none.

    Raises:
        UserError: the folder has several.
    """
    there = [file for file in (Path(path) / f"{lang}{suffix}" for suffix in SUFFIXES) if os.path.lexists(file)]
    if len(there) > 1:
        raise UserError(
            f"{there[0]}: {there[1].name} is beside it, and only one of them would be read; remove the old one"
        )
    return there[0] if there else path


def read_table(path: Path, expected: str, columns: Collection[str] | None = None) -> Iterator[tuple[str, Row]]:
    """Read the rows of a file. The end of its name says what it is.

    Args:
        expected: what a row must be, for error messages, for example "an object with prompt, chosen and rejected".
        columns: the columns to read of a Parquet file, where it has them; None for all.

    Yields:
        `(position, row)`; the position names the file and the line or the row. Values of CSV and TSV are texts.

    Raises:
        UserError: the file cannot be read, is of no known kind, or a row is not what its kind of file holds.
    """
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, columns)
    elif kind == ".jsonl":
        yield from read_jsonl(path, expected)
    elif kind == ".json":
        yield from read_json_list(path, expected)
    elif kind in (".csv", ".tsv"):
        yield from _csv_rows(path, "," if kind == ".csv" else "\t")
    else:
        raise UserError(f"{path}: not a file of rows; its name must end in {', '.join(SUFFIXES)}")


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, Row]]:
    with open_file(path) as file:
        reader = csv.reader(decoded_lines(file, path), delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if twice := [name for name in header if header.count(name) > 1]:
                raise UserError(f"{path}: has the column {brief(twice[0])} more than once; remove one of them")
            for values in reader:
                position = f"{path}:{reader.line_num}"
                if values and len(values) != len(header):
                    raise UserError(
                        f"{position}: has {len(values)} cells, but the first line {len(header)}; put a cell that "
                        "contains the separator, quotes or a line end into double quotes"
                    )
                if values:
                    yield position, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not valid CSV ({error}); correct the line") from error


def _parquet_rows(path: Path, columns: Collection[str] | None) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = 0
    with open_file(path) as opened:
        try:
            table = pq.ParquetFile(opened)
            names = table.schema_arrow.names
            if twice := [name for name in columns or names if names.count(name) > 1]:
                raise UserError(f"{path}: has the column {twice[0]} more than once; remove one of them")
            for batch in table.iter_batches(columns=[name for name in names if columns is None or name in columns]):
                for row in batch.to_pylist():
                    yield f"{path} row {index}", row
                    index += 1
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: texts that are not UTF-8, equal keys
            raise UserError(
                f"{path}: not a Parquet file that can be read ({reason(error)}); get or write it again"
            ) from error

"""Records survive a round trip through Parquet."""

import contextlib
import tempfile
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rows import read_rows
from xlr.errors import UserError
from xlr.records import Pair, Response
from xlr.run import rows
from xlr.run.rows import piece_table, records, table_of, write_rows, write_shards


def read_piece(path: Path, stamps: list[str]) -> list[Response] | None:
    table = piece_table(path, Response, stamps)
    return None if table is None else records(table, Response)


ROWS = [Response(f"q{i}", "es", i, f"¿Qué? {i} 你好", array("I", [i, i + 1]), "stop") for i in range(5)]


def test_rows_survive_a_round_trip(tmp_path: Path) -> None:
    write_shards(tmp_path, "es", Response, ROWS)
    assert read_rows(tmp_path, Response) == ROWS
    pair = Pair("a", "es", [{"role": "user", "content": "x"}], [{"role": "assistant", "content": "y"}], [], 1.5, -1.0)
    write_rows(tmp_path / "pair", Pair, [pair])
    assert read_rows(tmp_path / "pair", Pair) == [pair]


def test_columns_that_were_added_later_have_their_defaults_in_older_files(tmp_path: Path) -> None:
    own = Pair("a", "es", [], [{"role": "assistant", "content": "y"}], [], 1.5, -1.0, 3, 0.5)
    columns = table_of(Pair, [own, own])
    rows.write_table(tmp_path / "old", columns.drop_columns(["number", "weight"]))
    assert rows.read_rows(tmp_path / "old", Pair) == [replace(own, number=0, weight=1.0)] * 2
    rows.write_table(tmp_path / "other", columns.drop_columns(["chosen_score"]))
    with pytest.raises(UserError, match="other: damaged"):
        rows.read_rows(tmp_path / "other", Pair)


def test_shards_are_read_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS_PER_SHARD", 2)
    write_shards(tmp_path, "es", Response, ROWS)
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    assert read_rows(tmp_path, Response) == ROWS


@given(start=st.none() | st.integers(0, 6), stop=st.none() | st.integers(0, 6), group=st.integers(1, 6))
def test_a_part_of_a_file_equals_that_part_of_the_whole(start: int | None, stop: int | None, group: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_GROUP", group)
        path = Path(folder) / "es-00000.parquet"
        write_rows(path, Response, ROWS)
        part = slice(start, stop)
        assert rows.read_rows(path, Response, part) == ROWS[part]
        assert rows.read_keys(path, part) == [row.key for row in ROWS[part]]


def test_row_groups_without_wanted_rows_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_GROUP", 2)
    path = tmp_path / "es-00000.parquet"
    write_rows(path, Response, [*ROWS[:4], replace(ROWS[4], response="last" * 1000)])
    content = path.read_bytes()
    at = content.index(b"last")
    path.write_bytes(content[:at] + b"LAST" + content[at + 4 :])
    assert rows.read_rows(path, Response, slice(0, 4)) == ROWS[:4]
    with pytest.raises(UserError, match="damaged"):
        rows.read_rows(path, Response)


def test_token_ids_become_arrays(tmp_path: Path) -> None:
    written = [replace(row, token_ids=array("I", [40_000] * row.sample + [2**32 - 1])) for row in ROWS]
    write_shards(tmp_path, "es", Response, written[:2])
    write_shards(tmp_path, "ru", Response, written[2:])
    read = read_rows(tmp_path, Response)
    assert read == written
    assert all(isinstance(row.token_ids, array) for row in read)
    assert rows.read_rows(tmp_path / "ru-00000.parquet", Response, slice(1, 3)) == written[3:5]


def test_a_stamp_is_read_back_and_changes_no_row(tmp_path: Path) -> None:
    write_rows(tmp_path / "piece", Response, ROWS, "a stamp")
    assert read_piece(tmp_path / "piece", ["another", "a stamp"]) == ROWS
    assert read_piece(tmp_path / "piece", ["another"]) is None
    assert read_rows(tmp_path / "piece", Response) == ROWS
    write_rows(tmp_path / "plain", Response, ROWS)
    assert read_piece(tmp_path / "plain", ["a stamp"]) is None
    assert read_piece(tmp_path / "nothing", ["a stamp"]) is None


@pytest.mark.parametrize("damage", [lambda data, i: data[:i], lambda data, i: data[:i] + b"x" + data[i + 1 :]])
def test_a_damaged_file_is_noticed_or_reads_as_before(damage: Callable[[bytes, int], bytes], tmp_path: Path) -> None:
    """Cut off, or with another byte, at every position."""
    whole, path = tmp_path / "whole", tmp_path / "damaged"
    write_rows(whole, Response, ROWS, "a stamp")
    data = whole.read_bytes()
    noticed = 0
    for position in range(len(data)):
        path.write_bytes(damage(data, position))
        rows = read_piece(path, ["a stamp"])
        assert rows in (None, ROWS)
        with contextlib.suppress(UserError):
            assert read_rows(path, Response) == ROWS
            continue
        noticed += 1
    assert noticed > len(data) / 4


def test_a_shard_is_checked_after_writing(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", Response, ROWS, "a stamp")
    table = piece_table(tmp_path / "rows", Response, ["a stamp"])
    keys = [row.key for row in ROWS]
    rows.write_shard(tmp_path / "es-00000.parquet", table, keys)
    assert read_rows(tmp_path / "es-00000.parquet", Response) == ROWS
    for wrong in (keys[:-1], [*keys[1:], keys[0]], [*keys, keys[0]]):
        with pytest.raises(RuntimeError, match=r"rows instead of|or others"):
            rows.write_shard(tmp_path / "es-00001.parquet", table, wrong)

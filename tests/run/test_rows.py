"""Records survive a round trip through Parquet."""

from dataclasses import replace
from pathlib import Path

import pytest

from xlr.records import Pair, Response
from xlr.run import rows
from xlr.run.rows import read_rows, read_stamp, write_rows, write_shards

ROWS = [Response(f"q{i}", "es", i, f"¿Qué? {i} 你好", [i, i + 1], "stop") for i in range(5)]


def test_rows_survive_a_round_trip(tmp_path: Path) -> None:
    write_shards(tmp_path, "es", Response, ROWS)
    assert read_rows(tmp_path, Response) == ROWS
    pair = Pair("a", "es", [{"role": "user", "content": "x"}], [{"role": "assistant", "content": "y"}], [], 1.5, -1.0)
    write_rows(tmp_path / "pair", Pair, [pair])
    assert read_rows(tmp_path / "pair", Pair) == [pair]


def test_shards_are_read_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS_PER_SHARD", 2)
    write_shards(tmp_path, "es", Response, ROWS)
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    assert read_rows(tmp_path, Response) == ROWS


def test_a_token_id_is_one_object_in_all_rows(tmp_path: Path) -> None:
    written = [replace(row, token_ids=[40_000, 40_000 + row.sample]) for row in ROWS]
    write_shards(tmp_path, "es", Response, written[:2])
    write_shards(tmp_path, "ru", Response, written[2:])
    read = read_rows(tmp_path, Response)
    assert read == written
    assert len({id(row.token_ids[0]) for row in read}) == 1


def test_a_stamp_is_read_back_and_changes_no_row(tmp_path: Path) -> None:
    write_rows(tmp_path / "piece", Response, ROWS, "a stamp")
    assert read_stamp(tmp_path / "piece") == "a stamp"
    assert read_rows(tmp_path / "piece", Response) == ROWS
    write_rows(tmp_path / "plain", Response, ROWS)
    assert read_stamp(tmp_path / "plain") is None
    assert read_stamp(tmp_path / "nothing") is None
    (tmp_path / "truncated").write_bytes((tmp_path / "piece").read_bytes()[:100])
    assert read_stamp(tmp_path / "truncated") is None

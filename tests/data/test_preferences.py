"""Preference sets: strings or conversations, JSONL or Parquet, every bad row refused with its position."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xlr.data.preferences import Preference, load_preferences
from xlr.errors import UserError
from xlr.shipped import RECIPES


def test_the_shipped_preferences_can_be_read() -> None:
    assert len(load_preferences(str(RECIPES / "quickstart" / "preferences.jsonl"))) == 64


def test_fields_can_be_strings_or_conversations(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    question, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "good"), ("assistant", "bad"))
    )
    rows = [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"id": 7, "prompt": [question], "chosen": [question, good], "rejected": [bad]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert load_preferences(str(path)) == [
        Preference(key, [{"role": "user", "content": "q"}], "good", "bad") for key in ("0", "7")
    ]


def test_parquet_and_jsonl_are_read_alike(tmp_path: Path) -> None:
    rows = [{"id": key, "prompt": "q", "chosen": f"good {key}", "rejected": "bad"} for key in "ab"]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert load_preferences(str(tmp_path / "p.parquet")) == load_preferences(str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "q", "chosen": "c"}, r"p\.jsonl:1: rejected: missing or empty"),
        ({"prompt": "q", "chosen": " ", "rejected": "r"}, r"p\.jsonl:1: chosen: a message has no content"),
        ({"prompt": [], "chosen": "c", "rejected": "r"}, r"p\.jsonl:1: prompt: missing or empty"),
        (["q", "c", "r"], r"p\.jsonl:1: a list, not an object with prompt, chosen and rejected"),
    ],
)
def test_a_bad_row_is_refused_with_its_position(tmp_path: Path, line: object, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(UserError, match=message):
        load_preferences(str(path))


def test_a_missing_empty_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p\.jsonl: no such file; preferences are"):
        load_preferences(str(tmp_path / "p.jsonl"))
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"p\.jsonl: contains no preferences"):
        load_preferences(str(tmp_path / "p.jsonl"))
    (tmp_path / "p.parquet").write_text("{}")
    with pytest.raises(UserError, match=r"p\.parquet: not a Parquet file"):
        load_preferences(str(tmp_path / "p.parquet"))

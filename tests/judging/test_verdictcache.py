"""The cache of verdicts: added verdicts are found again, and damaged lines are passed over."""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr.errors import UserError
from xlr.judging.verdictcache import VerdictCache, content_key
from xlr.records import Verdict


def test_added_verdicts_are_found_when_the_cache_is_opened_again(tmp_path: Path) -> None:
    good, none = Verdict(0.25, "ω", 100, 1), Verdict(math.nan, "?", 50, 2)
    with VerdictCache(tmp_path) as cache:
        cache.add("a", good)
        with VerdictCache(tmp_path) as beside:  # another process has its own file
            beside.add("b", none)
    with VerdictCache(tmp_path) as cache:
        assert cache.verdicts["a"] == good
        assert math.isnan(cache.verdicts["b"].preference)
        assert (cache.prompt_tokens, cache.completion_tokens) == (150, 3)
    assert len(list(tmp_path.iterdir())) == 2  # a process without new verdicts leaves no file


def test_a_process_that_is_killed_before_its_first_verdict_leaves_no_file(tmp_path: Path) -> None:
    VerdictCache(tmp_path)  # as after kill -9, it is never closed
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_removed_meanwhile_is_named(tmp_path: Path) -> None:
    with VerdictCache(tmp_path / "cache") as cache:
        (tmp_path / "cache").rmdir()
        with pytest.raises(UserError, match="cache: verdicts cannot be written there"):
            cache.add("a", Verdict(1.0, "M", 1, 1))


def test_an_incomplete_last_line_is_ignored(tmp_path: Path) -> None:
    with VerdictCache(tmp_path) as cache:
        cache.add("a", Verdict(1.0, "M", 1, 1))
        cache.add("b", Verdict(0.0, "m", 1, 1))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with VerdictCache(tmp_path) as cache:
        assert set(cache.verdicts) == {"a"}


GOOD = {"key": "a", "preference": 0.5, "answer": "m", "prompt_tokens": 1, "completion_tokens": 1}
BAD = [
    b"{",
    b"3",
    b"{}",
    b'{"key": "a"}',
    b"\xff\xfe",
    b"[" * 100_000,
    *(
        json.dumps(GOOD | change).encode()
        for change in (
            {"x": 2},
            {"key": 5},
            {"preference": 2},
            {"preference": -1},
            {"preference": "1"},
            {"preference": True},
            {"preference": math.inf},
            {"answer": None},
            {"prompt_tokens": -1},
            {"completion_tokens": 1.5},
            {"completion_tokens": True},
        )
    ),
]


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_damaged_line_is_passed_over_with_its_position(
    line: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = json.dumps(GOOD | {"key": "b"}).encode()
    (tmp_path / "x.jsonl").write_bytes(sound + b"\n" + line + b"\n")
    with VerdictCache(tmp_path) as cache:
        assert set(cache.verdicts) == {"b"}
        assert (cache.prompt_tokens, cache.completion_tokens) == (1, 1)
    said = " ".join(capsys.readouterr().out.split())
    assert "1 lines are not verdicts, the first is line 2; their questions are asked again" in said


@given(st.binary(max_size=200))
def test_any_bytes_are_passed_over(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        Path(folder, "x.jsonl").write_bytes(content)
        Path(folder, "folder.jsonl").mkdir()
        Path(folder, "circle.jsonl").symlink_to(Path(folder, "circle.jsonl"))
        with VerdictCache(Path(folder)) as cache:
            assert not cache.verdicts


def test_the_key_depends_on_the_content_only() -> None:
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})

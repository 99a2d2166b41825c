"""The cache of verdicts: added verdicts are found again, and damaged lines are refused."""

import json
import math
from pathlib import Path

import pytest

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


def test_an_incomplete_last_line_is_ignored(tmp_path: Path) -> None:
    with VerdictCache(tmp_path) as cache:
        cache.add("a", Verdict(1.0, "M", 1, 1))
        cache.add("b", Verdict(0.0, "m", 1, 1))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with VerdictCache(tmp_path) as cache:
        assert set(cache.verdicts) == {"a"}


@pytest.mark.parametrize("line", ["{", "3", "{}", '{"key": "a"}', json.dumps({"key": "a", "preference": 1, "x": 2})])
def test_a_damaged_line_is_refused_with_its_position(line: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.jsonl:1: not a verdict"):
        VerdictCache(tmp_path)


def test_the_key_depends_on_the_content_only() -> None:
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})

"""Verdicts that were paid are never lost and never asked again."""

import json
import math
from pathlib import Path

import pytest

from xlr.errors import UserError
from xlr.evaluation.verdictcache import VerdictCache, content_key
from xlr.records import Verdict


def test_what_is_added_is_there_the_next_time(tmp_path: Path) -> None:
    good, none = Verdict(0.25, "ω", 100, 1), Verdict(math.nan, "?", 50, 2)
    with VerdictCache(tmp_path) as cache:
        cache.add("a", good)
        with VerdictCache(tmp_path) as beside:  # another process writes a file of its own
            beside.add("b", none)
    with VerdictCache(tmp_path) as cache:
        assert cache.verdicts["a"] == good
        assert math.isnan(cache.verdicts["b"].preference)
        assert (cache.prompt_tokens, cache.completion_tokens) == (150, 3)
    assert len(list(tmp_path.iterdir())) == 2  # who adds nothing leaves nothing


def test_a_line_that_was_being_written_is_passed_over(tmp_path: Path) -> None:
    with VerdictCache(tmp_path) as cache:
        cache.add("a", Verdict(1.0, "M", 1, 1))
        cache.add("b", Verdict(0.0, "m", 1, 1))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with VerdictCache(tmp_path) as cache:
        assert set(cache.verdicts) == {"a"}


@pytest.mark.parametrize("line", ["{", "3", "{}", '{"key": "a"}', json.dumps({"key": "a", "preference": 1, "x": 2})])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.jsonl:1: not a verdict"):
        VerdictCache(tmp_path)


def test_the_key_is_of_the_content() -> None:
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})

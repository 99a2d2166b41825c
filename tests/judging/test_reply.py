"""A reply of an endpoint is a sound verdict, or refused: nothing impossible becomes a number."""

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlr.judging import reply

TOP = [{"token": "m", "logprob": -0.5}, {"token": "M", "logprob": -1.0}]
GOOD: dict[str, Any] = {
    "choices": [{"message": {"content": "m"}, "logprobs": {"content": [{"top_logprobs": TOP}]}}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 1},
}
LOGPROBS = ("choices", 0, "logprobs")
FIRST = (*LOGPROBS, "content", 0)
LOGPROB = (*FIRST, "top_logprobs", 0, "logprob")


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    found: Any = copy.deepcopy(GOOD)
    holder = found
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return found


BAD: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("choices",), None, "choices is missing"),
    (("choices",), "none", "choices is of the wrong type"),
    (("choices",), [], "choices is empty"),
    (("choices", 0), 5, r"choices\[0\] is of the wrong type"),
    (("choices", 0, "message"), None, "message is missing"),
    (("choices", 0, "message"), "m", "message is of the wrong type"),
    (("choices", 0, "message", "content"), 5, "content is of the wrong type"),
    (("choices", 0, "message", "content"), [{"text": "m"}], "content is of the wrong type"),
    (LOGPROBS, 5, "logprobs is of the wrong type"),
    ((*LOGPROBS, "content"), "x", "content is of the wrong type"),
    (FIRST, 5, r"content\[0\] is of the wrong type"),
    ((*FIRST, "top_logprobs"), {"m": -1}, "top_logprobs is of the wrong type"),
    ((*FIRST, "top_logprobs", 0), "m", "top_logprobs is of the wrong type"),
    ((*FIRST, "top_logprobs", 0, "token"), 5, "token is of the wrong type"),
    (LOGPROB, None, "a log-probability is no number"),
    (LOGPROB, "-1", "a log-probability is no number"),
    (LOGPROB, False, "a log-probability is no number"),
    (LOGPROB, 5000, "a log-probability is 5000, which is above 0"),
    (LOGPROB, 0.5, "a log-probability is 0.5, which is above 0"),
    (LOGPROB, math.nan, "NaN is no JSON number"),
    (LOGPROB, math.inf, "Infinity is no JSON number"),
    (LOGPROB, -0.1, "sum to more than 1"),
    (("usage",), 5, "usage is of the wrong type"),
    *(
        (("usage", name), value, f"usage.{name} is .* no number of tokens")
        for name in ("prompt_tokens", "completion_tokens")
        for value in (-1, 1.5, "1", True, 10**12, [1])
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=range(len(BAD)))
def test_an_impossible_reply_is_refused(path: tuple[str | int, ...], value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reply.parse(json.dumps(changed(path, value)), weighted=True)


@pytest.mark.parametrize("text", ["", "null", "3", "[]", "{", "<html>", "[" * 100_000, '{"choices": ' + "9" * 5000])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        reply.parse(text, weighted=True)


def test_a_sound_reply_is_read() -> None:
    found = reply.parse(json.dumps(GOOD), weighted=True)
    assert found.preference == pytest.approx(math.exp(-1) / (math.exp(-0.5) + math.exp(-1)))
    assert (found.answer, found.prompt_tokens, found.completion_tokens) == ("m", 100, 1)
    assert reply.parse(json.dumps(GOOD), weighted=False).preference == 0
    small = reply.parse(json.dumps(changed(LOGPROB, -9999.0)), weighted=True)
    assert small.preference == 1
    assert (
        reply.parse(json.dumps(changed((*FIRST, "top_logprobs"), [TOP[0] | {"logprob": 1e-7}])), True).preference == 0
    )


@pytest.mark.parametrize("path", [("usage",), ("usage", "prompt_tokens"), ("usage", "completion_tokens")])
def test_tokens_may_be_missing(path: tuple[str, ...]) -> None:
    assert 0 in (
        (found := reply.parse(json.dumps(changed(path, None)), weighted=True)).prompt_tokens,
        found.completion_tokens,
    )


def test_missing_log_probabilities_are_told_apart() -> None:
    for empty in (None, {}):
        with pytest.raises(reply.NoLogprobsError):
            reply.parse(json.dumps(changed(LOGPROBS, empty)), weighted=True)
    assert math.isnan(reply.parse(json.dumps(changed((*LOGPROBS, "content"), [])), weighted=True).preference)


def test_a_long_answer_is_cut_and_half_characters_can_be_written() -> None:
    found = reply.parse(json.dumps(changed(("choices", 0, "message", "content"), "\ud800" + "x " * 9999 + "M")), False)
    assert found.preference == 1
    assert len(found.answer) == 2000
    half = reply.parse(json.dumps(changed(("choices", 0, "message", "content"), "\ud800 m")), False)
    assert half.answer.encode("utf-8")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PATHS = sorted({path[:end] for path, _, _ in BAD for end in range(1, len(path) + 1)}, key=str)


@settings(deadline=None)
@given(st.sampled_from(PATHS), VALUES, st.booleans())
def test_any_reply_is_a_sound_verdict_or_refused(path: tuple[str | int, ...], value: Any, weighted: bool) -> None:
    try:
        found = reply.parse(json.dumps(changed(path, value)), weighted)
    except (ValueError, reply.NoLogprobsError):
        return
    assert math.isnan(found.preference) or 0 <= found.preference <= 1
    assert found.prompt_tokens >= 0
    assert found.completion_tokens >= 0
    assert found.answer.encode("utf-8") is not None

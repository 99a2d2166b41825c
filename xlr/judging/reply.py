"""Reads the verdict in a chat completion, strictly: an endpoint can answer anything."""

import json
import math
from typing import Any, NoReturn

from xlr.judging import question
from xlr.records import Verdict

_MOST_TOKENS = 10_000_000  # of a question or a reply; the longest contexts have some millions
_MOST_ANSWER = 2000  # characters of a reply that are kept
_ROUNDING = 1e-3  # log-probabilities in low precision may lie a little above 0
_MOST_PROBABILITY = 1.05  # of all tokens together


class NoLogprobsError(Exception):
    """The reply is a chat completion, but without log-probabilities."""


def parse(text: str, weighted: bool, scale: question.Scale = question.PREFERENCE) -> Verdict:
    """The verdict in the body of a chat completion.

    Args:
        weighted: read the log-probabilities of the first token; otherwise the text.
        scale: what the judge may reply.

    Raises:
        ValueError: it is not a chat completion, or its numbers are impossible; says what is wrong.
        NoLogprobsError: there are no log-probabilities, but they are asked for.
    """
    reply = _member({"body": _json(text)}, "body", dict)
    choices = _member(reply, "choices", list)
    if not choices:
        raise ValueError("choices is empty")
    first = _member({"choices[0]": choices[0]}, "choices[0]", dict)
    answer = _member(_member(first, "message", dict), "content", str, optional=True) or ""
    preference = question.weighted(_first_token(first), scale) if weighted else question.choice(answer, scale)
    usage = _member(reply, "usage", dict, optional=True) or {}
    counts = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    # Half of a surrogate pair cannot be written as UTF-8.
    kept = answer[-_MOST_ANSWER:].encode("utf-8", "replace").decode("utf-8")
    return Verdict(preference, kept, *counts)


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _member(holder: dict[str, Any], name: str, kind: type, optional: bool = False) -> Any:
    """A member of an object. Without `optional` it must be there.

    Raises:
        ValueError: it is missing, or of another type.
    """
    value = holder.get(name)
    if isinstance(value, kind) or (optional and value is None):
        return value
    raise ValueError(f"{name} is missing" if value is None else f"{name} is of the wrong type")


def _first_token(first: dict[str, Any]) -> dict[str, float]:
    """The likeliest tokens in the first place and their log-probabilities.

    Raises:
        NoLogprobsError: there are none.
        ValueError: they are no log-probabilities of different tokens.
    """
    logprobs = _member(first, "logprobs", dict, optional=True)
    if not logprobs:
        raise NoLogprobsError
    tokens = _member(logprobs, "content", list, optional=True)
    if not tokens:
        return {}
    top = _member(_member({"content[0]": tokens[0]}, "content[0]", dict), "top_logprobs", list)
    found = {}
    for entry in top:
        entry = _member({"top_logprobs": entry}, "top_logprobs", dict)
        found[_member(entry, "token", str)] = _logprob(entry.get("logprob"))
    if sum(map(math.exp, found.values())) > _MOST_PROBABILITY:
        raise ValueError("the probabilities of the tokens sum to more than 1")
    return found


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a log-probability is no number")
    if not value <= _ROUNDING:
        raise ValueError(f"a log-probability is {str(value)[:20]}, which is above 0")
    return min(float(max(value, -1e9)), 0.0)


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= _MOST_TOKENS:
        raise ValueError(f"usage.{name} is {str(value)[:20]}, which is no number of tokens")
    return value

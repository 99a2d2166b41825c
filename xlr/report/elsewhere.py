"""Rows of the report's tables on what alignment costs or brings elsewhere: questions of several turns, benchmarks.

The intervals of changes are those of independent questions; of the same questions they are rather too wide.
"""

import math
from collections.abc import Iterator
from typing import TypeAlias

from xlr.benchmarking.facts import Metric
from xlr.dialogues.facts import RatedFacts
from xlr.findings.found import Found, label, models
from xlr.findings.numbers import interval, number
from xlr.maths.shares import Z
from xlr.records import START

Row: TypeAlias = tuple[str, ...]


def ratings(found: Found) -> Iterator[Row]:
    """The ratings of each model in each language."""
    first: dict[str, RatedFacts] = {}
    for key, model in models(found):
        if not (stage := model["stages"].get("rate")):
            continue
        for lang, own in stage["facts"]["languages"].items():
            before = first.get(lang)
            if key == START:
                first[lang] = own
            yield (
                lang,
                label(key),
                number(own["questions"], ","),
                number(own["rating"], ".2f"),
                _spread(own["rating"], own["error"]),
                ", ".join(number(turn, ".2f") or "none" for turn in own["turns"]),
                number(own["undecided"], ","),
                *(_rating_since(before, own) if before else ("", "")),
            )


def _spread(value: float | None, error: float | None) -> str:
    """A 95 % interval; empty if nothing is known of it."""
    return "" if value is None or error is None else interval([value - Z * error, value + Z * error], ".2f")


def _rating_since(first: RatedFacts, last: RatedFacts) -> tuple[str, str]:
    if first["rating"] is None or last["rating"] is None:
        return "", ""
    change, errors = last["rating"] - first["rating"], (first["error"], last["error"])
    error = None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1])
    return f"{change:+.2f}", _spread(change, error)


def benchmarks(found: Found) -> Iterator[Row]:
    """The metrics of each task of lm-eval."""
    first: dict[tuple[str, str], Metric] = {}
    for key, model in models(found):
        for task, own in model["stages"]["benchmark"]["facts"].items() if "benchmark" in model["stages"] else ():
            for name, metric in own["metrics"].items():
                before = first.get((task, name))
                if key == START:
                    first[task, name] = metric
                yield (
                    task,
                    name,
                    label(key),
                    number(own["rows"], ","),
                    number(metric["value"], scale=100),
                    *(_since(before, metric) if before else ("", "")),
                )


def _since(first: Metric, last: Metric) -> tuple[str, str]:
    """A change in percentage points, and its 95 % interval."""
    change = 100 * (last["value"] - first["value"])
    if first["error"] is None or last["error"] is None:
        return f"{change:+.1f}", ""
    half = 100 * Z * math.hypot(first["error"], last["error"])
    return f"{change:+.1f}", interval([change - half, change + half])

"""Rows of the report's tables on what alignment costs or brings elsewhere: questions of several turns, benchmarks."""

import math
from collections.abc import Iterator
from typing import TypeAlias

from xlr.benchmarking.facts import Metric
from xlr.findings.found import Found, label, models
from xlr.findings.numbers import interval, number
from xlr.maths.shares import Z
from xlr.records import START

Row: TypeAlias = tuple[str, ...]


def ratings(found: Found) -> Iterator[Row]:
    """The ratings of each model in each language, and the change from pi^0 in the same answers."""
    for key, model in models(found):
        if not (stage := model["stages"].get("rate")):
            continue
        for lang, own in stage["facts"]["languages"].items():
            gain = own.get("gain")
            yield (
                lang,
                label(key),
                number(own["questions"], ","),
                number(own["rating"], ".2f"),
                _spread(own["rating"], own["error"]),
                ", ".join(number(turn, ".2f") or "none" for turn in own["turns"]),
                number(own["undecided"], ","),
                *((number(gain["mean"], "+.2f"), _spread(gain["mean"], gain["error"])) if gain else ("", "")),
            )


def _spread(value: float | None, error: float | None) -> str:
    """A 95 % interval; empty if nothing is known of it."""
    return "" if value is None or error is None else interval([value - Z * error, value + Z * error], ".2f")


def benchmarks(found: Found) -> Iterator[Row]:
    """The metrics of each task of lm-eval.

    The intervals of changes are those of independent questions; of the same questions they are rather too wide.
    """
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

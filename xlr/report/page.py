"""The report as one HTML page, which fetches nothing.

Everything that comes from models or files is escaped. The page runs its own short script and no other.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from xlr.findings.conclusion import Conclusion, conclude
from xlr.findings.found import Run
from xlr.findings.summary import summary
from xlr.report import examples, panels, tables
from xlr.report.overview import overview

_AXIS_ROOM = 12  # percent of the width between two marks of an axis
_TEMPLATES = Path(__file__).parent / "templates"

# Section -> its heading.
_HEADINGS = {
    "quality": "Answer quality",
    "data": "Responses, pairs and training",
    "examples": "Examples: preference pairs and judged answers",
    "costs": "Costs",
    "facts": "Settings and libraries",
}


def render(runs: Sequence[Run], comparisons: Sequence[tuple[str, Conclusion]]) -> str:
    """The whole page.

    Args:
        comparisons: heading and answer of each comparison between runs.
    """
    found = [run.found for run in runs]
    shown = examples.collect(runs)
    sections = {
        "quality": tables.quality(found),
        "data": tables.data(found),
        "examples": shown["rows"] and shown,
        "costs": tables.costs(found),
        "facts": tables.facts(found),
    }
    return (
        environment()
        .get_template("report.html")
        .render(
            title=", ".join(run.name for run in runs),
            several=len(runs) > 1,
            runs=found,
            contents=[(name, heading) for name, heading in _HEADINGS.items() if sections[name]],
            overviews=[overview(run) for run in runs],
            conclusions=[*comparisons, *((run.name, conclude(run.found)) for run in runs)],
            languages={lang: name for own in found for lang, name in own["names"].items()},
            win_rate_panels=panels.win_rates(runs),
            data_panels=panels.data(runs),
            training_panels=panels.training(runs),
            headings=_HEADINGS,
            **sections,
        )
    )


def environment() -> jinja2.Environment:
    """The templates, which escape every value, with the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "zip": lambda one, other: list(zip(one, other, strict=True)),
        "pi": _with_raised_digits,
        "labelled": _labelled,
        "embedded": _embedded,
        "positions": _positions,
        "axis": _axis,
    }
    environment.globals["summary"] = summary
    return environment


def _with_raised_digits(text: str) -> Markup:
    """π1 with its iteration raised, π_I with its letter lowered."""
    return Markup(re.sub(r"π_I\b", "π<sub>I</sub>", re.sub(r"π(\d+)", r"π<sup>\1</sup>", str(escape(text)))))


def _labelled(svg: str, name: str) -> Markup:
    """A drawing with a name for screen readers."""
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1))


def _embedded(rows: Any) -> Markup:
    """JSON for a script element: no text in it can end the element or open a comment."""
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    return Markup(re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found.group()):04x}", text))


def _positions(conclusion: Conclusion) -> list[dict[str, float]]:
    """Where each finding's interval is drawn, on one scale from 0 to 100 for all findings."""
    position = _scale(conclusion)
    return [
        {
            "low": position(one.low),
            "width": round(position(one.high) - position(one.low), 2),
            "value": position(one.value),
            "even": position(one.even),
        }
        for one in conclusion.findings
    ]


def _axis(conclusion: Conclusion) -> list[tuple[float, str]]:
    """Position and text of three marks below the intervals: the lowest and the highest end, and what is even."""
    findings, position = conclusion.findings, _scale(conclusion)
    even, low, high = findings[0].even, min(one.low for one in findings), max(one.high for one in findings)
    marks = {position(even): f"{even:.0f}"}
    for end in (low, high):
        if abs(position(end) - position(even)) > _AXIS_ROOM:
            marks[position(end)] = f"{end:+.0f}" if even == 0 else f"{end:.0f}"
    return sorted(marks.items())


def _scale(conclusion: Conclusion) -> Callable[[float], float]:
    """From a value to its position, from 0 to 100."""
    findings = conclusion.findings
    low = min(min(one.low, one.even) for one in findings)
    high = max(max(one.high, one.even) for one in findings)
    room = 0.05 * (high - low) or 1.0

    def position(value: float) -> float:
        return round(100 * (value - low + room) / (high - low + 2 * room), 2)

    return position

"""The report as one HTML page that needs no network.

Everything that comes from models or files is escaped; the page runs its own short script and nothing else.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from xlr.maths.lengthcontrol import ALPHA_GRID
from xlr.report import curves, examples, plots, tables
from xlr.report.conclusion import Conclusion, conclude
from xlr.report.plots import Plot
from xlr.report.tables import Found, label
from xlr.run.context import Context

_TEMPLATES = Path(__file__).parent / "templates"
_METRICS = {
    "loss": ("Loss", "nats"),
    "rewards/margins": ("Reward margin", "nats"),
    "rewards/accuracies": ("Accuracy", "share of pairs"),
    "logps/chosen": ("Log-probability of chosen", "nats"),
    "logps/rejected": ("Log-probability of rejected", "nats"),
    "kl": ("KL", "nats"),
}

_HEADINGS = {
    "quality": "Answers",
    "data": "Training",
    "examples": "Pairs and judged answers",
    "costs": "Costs",
    "facts": "How it was made",
}

# Heading, what it shows, its plots.
Group = tuple[str, str, Sequence[Plot]]


def render(runs: Sequence[tuple[Context, Found]], between: Sequence[tuple[str, Conclusion]]) -> str:
    """The whole page.

    Args:
        between: the runs against each other, under their headings.
    """
    found = [own for _, own in runs]
    several = len(runs) > 1
    shown = examples.collect(runs)
    parts = {
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
            title=", ".join(own["name"] for own in found),
            several=several,
            runs=found,
            contents=[(name, heading) for name, heading in _HEADINGS.items() if parts[name]],
            conclusions=[*between, *((own["name"], conclude(own)) for own in found)],
            languages={lang: name for own in found for lang, name in own["names"].items()},
            win_rate_plots=[_win_rate_plots(own, several) for own in found],
            data_plots=[group for context, own in runs for group in _data_plots(context, own, several)],
            training_plots=[_training_plots(context, own, several) for context, own in runs],
            headings=_HEADINGS,
            **parts,
        )
    )


def environment() -> jinja2.Environment:
    """The templates, which escape what they are given, and what they call."""
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
        "places": _places,
    }
    environment.globals["summary"] = tables.summary
    return environment


def _with_raised_digits(text: str) -> Markup:
    """π with the iteration above it, and π_I with its letter below."""
    return Markup(re.sub(r"π_I\b", "π<sub>I</sub>", re.sub(r"π(\d+)", r"π<sup>\1</sup>", str(escape(text)))))


def _labelled(svg: str, name: str) -> Markup:
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1))


def _embedded(rows: Any) -> Markup:
    """JSON that ends no script element and opens no comment, whatever its texts hold."""
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    return Markup(re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found.group()):04x}", text))


def _places(conclusion: Conclusion) -> list[dict[str, float]]:
    """Where each finding's interval stands on a scale of 100 that all of them share."""
    findings = conclusion.findings
    low = min(min(one.low, one.even) for one in findings)
    high = max(max(one.high, one.even) for one in findings)
    room = 0.05 * (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low + room) / (high - low + 2 * room), 2)

    return [
        {
            "low": place(one.low),
            "width": round(place(one.high) - place(one.low), 2),
            "value": place(one.value),
            "even": place(one.even),
        }
        for one in findings
    ]


def _heading(found: Found, text: str, several: bool) -> str:
    return f"{text} · {found['name']}" if several else text


def _win_rate_plots(found: Found, several: bool) -> Group:
    judged = {model: entry["judgements"] for model, entry in found["iterations"].items() if entry["judgements"]}
    by_language: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for model, figures in judged.items():
        for lang, own in tables.of_languages(found, figures):
            by_language[lang][label(model)] = own
    panels = [
        plots.win_rates(
            found["names"].get(lang, lang),
            found["name"],
            list(own),
            {
                words: [(figures[name], *figures[f"{key}_interval"]) for figures in own.values()]
                for words, name, key in (
                    ("win rate", "win_rate", "win_rate"),
                    ("length-controlled", "length_controlled_win_rate", "length_controlled"),
                )
            },
        )
        for lang, own in by_language.items()
    ]
    return (
        _heading(found, "Win rates", several),
        "With 95 % intervals; dotted is 50 %, as good as the baseline.",
        panels,
    )


def _data_plots(context: Context, found: Found, several: bool) -> Iterator[Group]:
    rewards: defaultdict[str, dict[str, list[float]]] = defaultdict(dict)
    gaps: defaultdict[str, dict[str, tuple[list[float], float]]] = defaultdict(dict)
    for iteration in range(1, context.config.iterations + 1):
        for lang, rows in curves.scores(context, iteration):
            name = f"iteration {iteration}"
            if finite := [row.reward for row in rows if math.isfinite(row.reward)]:
                rewards[lang][name] = finite
            pairs = found["iterations"][str(iteration)]["stages"].get("pair")
            if pairs and (curve := curves.length_gaps(context, rows)):
                gaps[lang][name] = (curve, pairs["facts"][lang]["alpha"])
    yield (
        _heading(found, "Rewards of the sampled responses", several),
        tables.reward_formula(found),
        [plots.rewards(found["names"][lang], found["name"], own) for lang, own in rewards.items()],
    )
    yield (
        _heading(found, "Length control", several),
        "The gap between the mean lengths of chosen and rejected responses at every penalty alpha a character; "
        "the dot is the alpha that was taken.",
        [plots.length_gap(found["names"][lang], found["name"], ALPHA_GRID, own) for lang, own in gaps.items()],
    )


def _training_plots(context: Context, found: Found, several: bool) -> Group:
    series: defaultdict[str, dict[str, tuple[list[int], list[float]]]] = defaultdict(dict)
    for iteration in range(context.config.iterations + 1):
        rows = curves.training(context.run.iteration(iteration))
        for metric in _METRICS:
            if points := [(row["step"], row[metric]) for row in rows if metric in row]:
                series[metric][label(str(iteration))] = ([step for step, _ in points], [value for _, value in points])
    panels = [plots.over_steps(*_METRICS[metric], found["name"], own) for metric, own in series.items()]
    return (
        _heading(found, "Training curves", several),
        "Means over the pairs of a step, all languages together.",
        panels,
    )

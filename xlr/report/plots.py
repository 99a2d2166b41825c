"""Plots as inline SVG: text stays text, colours come from the page, and the same numbers give the same bytes.

The only module that imports matplotlib. Every plot is small, so that a page of any width can arrange several.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any, Literal

from cycler import cycler
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_SIZE = (3.6, 2.5)  # inches
_MOST_BINS = 40
_FEWEST_BINS = 10
_RESPONSES_PER_BIN = 8
_MARKED_STEPS = 20  # with fewer steps, each is marked

# Placeholder colours: `_inline` replaces them with the colours of the page, which has a light and a dark scheme.
_INK, _LINE = "#010101", "#020202"
_SERIES = tuple(f"#0300{number:02x}" for number in range(1, 7))
_COLOURS = {_INK: "var(--ink-soft)", _LINE: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, 1)
}
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
_STYLE: dict[Any, Any] = {
    "font.sans-serif": ["DejaVu Sans"],
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.prop_cycle": cycler(color=_SERIES, linestyle=_DASHES),
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Plot:
    """A drawing with its title, and its numbers as text, one line per model."""

    title: str
    numbers: Sequence[str]
    svg: str


def _drawn(
    draw: Callable[[Axes], None], x: str, y: str, salt: str, legend: Literal["best", "upper left"] = "best"
) -> str:
    """The SVG of a plot.

    Args:
        salt: makes the ids of its parts; must differ between the plots of a page.
        legend: where the legend is, if there is one.
    """
    with style.context(["default", _STYLE | {"svg.hashsalt": salt}]), warnings.catch_warnings():
        # matplotlib's font may lack letters of a name; the browser draws them with the page's font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=_SIZE)
        axes = figure.subplots()
        axes.set(xlabel=x, ylabel=y)
        draw(axes)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(loc=legend)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue())


def _inline(document: str) -> str:
    """The drawing without the parts that only a separate SVG file needs, in the colours of the page."""
    view = re.search(r'viewBox="[^"]+"', document)
    assert view is not None
    drawing = document[document.index("</metadata>") + len("</metadata>") :]
    drawing = re.sub(r"<style.*?</style>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'<g id="[^"]*">', "<g>", drawing)  # the plots of a page repeat these ids
    for stand_in, colour in _COLOURS.items():
        drawing = drawing.replace(stand_in, colour)
    return f"<svg {view.group()}>{drawing}".strip()


def rewards(title: str, run: str, by_model: Mapping[str, Sequence[float]], unit: str) -> Plot:
    """The distribution of rewards, one line per model."""
    low = min(min(values) for values in by_model.values())
    high = max(max(values) for values in by_model.values())
    edges = (low, high if high > low else low + 1)
    fewest = min(map(len, by_model.values()))
    bins = max(_FEWEST_BINS, min(_MOST_BINS, fewest // _RESPONSES_PER_BIN))

    def draw(axes: Axes) -> None:
        for (name, values), dash in zip(by_model.items(), cycle(_DASHES)):
            weights = [100 / len(values)] * len(values)
            axes.hist(values, bins=bins, range=edges, weights=weights, histtype="step", label=name, linestyle=dash)

    numbers = [f"{name}: {_spread(values)}" for name, values in by_model.items()]
    return Plot(title, numbers, _drawn(draw, f"reward, {unit}", "share of responses, %", f"rewards {title} {run}"))


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    low, middle, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.5, 0.9))
    return f"median {middle:.2f}, 10th percentile {low:.2f}, 90th percentile {high:.2f}, {len(values):,} responses"


def length_gap(
    title: str, run: str, grid: Sequence[float], curves: Mapping[str, tuple[Sequence[float], float]]
) -> Plot:
    """The length gap at each alpha, one curve per model, with a dot at the alpha that was used."""
    used = {
        name: gaps[min(range(len(grid)), key=lambda place: abs(grid[place] - alpha))]
        for name, (gaps, alpha) in curves.items()
    }

    def draw(axes: Axes) -> None:
        for name, (gaps, alpha) in curves.items():
            (line,) = axes.plot(grid, gaps, label=name)
            axes.plot([alpha], [used[name]], marker="o", markersize=5, color=line.get_color(), linestyle="none")
        axes.margins(x=0.02)
        axes.set_ylim(bottom=0)

    numbers = [
        f"{name}: gap {used[name]:.1f} at alpha {alpha:.3f}, gap {gaps[0]:.1f} without length control"
        for name, (gaps, alpha) in curves.items()
    ]
    return Plot(title, numbers, _drawn(draw, "alpha", "length gap, characters", f"length gap {title} {run}"))


def over_steps(title: str, unit: str, run: str, series: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> Plot:
    """A training metric, one line per model."""

    def draw(axes: Axes) -> None:
        for name, (steps, values) in series.items():
            axes.plot(steps, values, label=name, marker="o" if len(steps) < _MARKED_STEPS else None, markersize=3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    numbers = [
        f"{name}: {values[0]:.4g} → {values[-1]:.4g} in {steps[-1]:,} steps" for name, (steps, values) in series.items()
    ]
    return Plot(title, numbers, _drawn(draw, "optimizer step", unit, f"{title} {run}"))


def win_rates(title: str, run: str, models: Sequence[str], series: Mapping[str, Sequence[Sequence[float]]]) -> Plot:
    """Win rates of models, one line per kind of rate.

    Args:
        series: kind of rate -> value, low and high of each model.
    """

    def draw(axes: Axes) -> None:
        for line, (name, rates) in enumerate(series.items()):
            positions = [number + 0.12 * line for number in range(len(models))]
            values = [value for value, _, _ in rates]
            errors = [[value - low for value, low, _ in rates], [high - value for value, _, high in rates]]
            axes.errorbar(positions, values, errors, marker="o", markersize=4, capsize=3, label=name)
        axes.axhline(50, color=_INK, linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(models)), models)
        axes.margins(x=0.15)

    numbers = []
    for name, rates in series.items():
        shown = (
            f"{model} {value:.1f} ({low:.1f} … {high:.1f})"
            for model, (value, low, high) in zip(models, rates, strict=True)
        )
        numbers.append(f"{name}: {', '.join(shown)}")
    return Plot(title, numbers, _drawn(draw, "", "%", f"win rates {title} {run}"))


def slopes(title: str, run: str, series: Mapping[str, Mapping[str, float]]) -> Plot:
    """A share in percent from model to model, one line per language, named where it ends.

    Args:
        series: language -> model -> share, from 0 to 100.
    """
    models = list(dict.fromkeys(model for own in series.values() for model in own))
    ends = _apart([list(own.values())[-1] for own in series.values()])

    def draw(axes: Axes) -> None:
        for (name, own), dash, end in zip(series.items(), cycle(_DASHES), ends, strict=False):
            positions = [models.index(model) for model in own]
            (line,) = axes.plot(positions, list(own.values()), marker="o", markersize=4, linestyle=dash)
            axes.annotate(name, (positions[-1], end), (8, 0), textcoords="offset points", va="center", fontsize=8)
            line.set_clip_on(False)
        axes.set_xticks(range(len(models)), models)
        axes.set_ylim(0, 105)
        axes.set_xlim(-0.2, len(models) - 1 + 0.45 * max(len(models) - 1, 1))

    numbers = [
        f"{name}: " + ", ".join(f"{model} {value:.0f} %" for model, value in own.items())
        for name, own in series.items()
    ]
    return Plot(title, numbers, _drawn(draw, "", "%", f"slopes {title} {run}"))


def _apart(values: Sequence[float], room: float = 7, highest: float = 103) -> list[float]:
    """The heights of labels beside these values, moved apart so that they do not cover each other or leave the plot."""
    heights = list(values)
    order = sorted(range(len(heights)), key=heights.__getitem__)
    for lower, upper in pairwise(order):
        heights[upper] = max(heights[upper], heights[lower] + room)
    for number in reversed(order):
        heights[number] = highest = min(heights[number], highest)
        highest -= room
    return heights


def accuracies(title: str, run: str, series: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Plot:
    """Accuracies with intervals, one row per language and one mark per kind of instruction; chance is dotted.

    Args:
        series: kind of instruction -> language -> accuracy, low and high, from 0 to 100.
    """
    names = list(dict.fromkeys(name for own in series.values() for name in own))

    def draw(axes: Axes) -> None:
        for number, ((kind, own), marker) in enumerate(zip(series.items(), ("o", "s", "^"), strict=False)):
            rows = [len(names) - 1 - names.index(name) - 0.25 * number for name in own]
            values = [value for value, _, _ in own.values()]
            errors = [
                [value - low for value, low, _ in own.values()],
                [high - value for value, _, high in own.values()],
            ]
            axes.errorbar(values, rows, xerr=errors, fmt=marker, markersize=5, capsize=3, label=kind)
        axes.axvline(50, color=_INK, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(names)), reversed(names))
        axes.set_xlim(0, 102)
        axes.set_ylim(-0.7, len(names) + 0.4)  # room for the legend

    numbers = [
        f"{kind}: "
        + ", ".join(f"{name} {value:.0f} ({low:.0f} … {high:.0f})" for name, (value, low, high) in own.items())
        for kind, own in series.items()
    ]
    return Plot(title, numbers, _drawn(draw, "% of pairs", "", f"accuracies {title} {run}", "upper left"))


def gains(title: str, unit: str, points: Mapping[str, tuple[float, tuple[float, float, float]]]) -> Plot:
    """What variants gain against what they take, each with its number; the base, at 0, is dotted.

    Args:
        unit: of what they take.
        points: variant -> what it takes, and its gain with low and high, in percentage points.
    """

    def draw(axes: Axes) -> None:
        width = max(taken for taken, _ in points.values()) - min(taken for taken, _ in points.values())
        for number, (taken, (gain, low, high)) in enumerate(points.values()):
            aside = taken + 0.01 * width * number  # variants of equal cost stay apart
            axes.errorbar([aside], [gain], [[gain - low], [high - gain]], marker="o", markersize=5, capsize=3)
            axes.annotate(str(number + 1), (aside, high), (0, 3), textcoords="offset points", ha="center", fontsize=8)
        axes.axhline(0, color=_INK, linewidth=0.8, linestyle=":")
        axes.margins(x=0.1, y=0.15)

    numbers = [
        f"{number} {name}: {gain:+.1f} ({low:+.1f} … {high:+.1f}) for {taken:,.3g} {unit}"
        for number, (name, (taken, (gain, low, high))) in enumerate(points.items(), 1)
    ]
    return Plot(title, numbers, _drawn(draw, unit, "percentage points", f"gains {title}"))

"""Win rates of annotations, computed and shown. Command: `xlr winrate ANNOTATIONS [OTHER]`."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.table import Table

from xlr.console import console
from xlr.errors import UserError
from xlr.evaluation.annotations import Annotations
from xlr.maths import winrate
from xlr.maths.winrate import Difficulty

_COUNTS = ("wins", "ties", "losses", "failed")


def measure(first: Annotations, second: Annotations | None, difficulty: Difficulty | None) -> dict[str, Any]:
    """The win rates of one file, or of two files and their difference (second minus first), ready for JSON.

    Rates are in percent, differences in percentage points.

    Raises:
        UserError: the two files have different instructions, or the difficulty table has too few.
    """
    if difficulty is not None and first.comparisons.positions_N.max() >= len(difficulty.difficulties_P):
        raise UserError(
            f"{first.path}: has more instructions than the {len(difficulty.difficulties_P)} of the difficulty table, "
            "which is only for AlpacaEval's own instructions; leave out --difficulty or judge.difficulty"
        )
    own = winrate.estimates(first.comparisons, difficulty)
    if second is None:
        return _figures(first, own, difficulty)
    second = _aligned(first, second)
    other = winrate.estimates(second.comparisons, difficulty)
    return {
        "first": _figures(first, own, difficulty),
        "second": _figures(second, other, difficulty),
        "difference": _difference(own, other),
    }


def changes(
    files: Sequence[Annotations], steps: Sequence[tuple[int, int]], difficulty: Difficulty | None
) -> list[dict[str, Any]]:
    """The difference of the rates for each step from one file to another (second minus first), as in `measure`.

    Args:
        steps: indices of the first and the second file.

    Raises:
        UserError: the files have different instructions.
    """
    found = [winrate.estimates(_aligned(files[0], file).comparisons, difficulty) for file in files]
    return [_difference(found[first], found[second]) for first, second in steps]


def _aligned(first: Annotations, second: Annotations) -> Annotations:
    """The second file with the first file's position for each instruction, so that resamples are paired."""
    for one, other in ((first, second), (second, first)):
        known = set(other.keys)
        missing = next((key for key in one.keys if key not in known), None)
        if missing is not None:
            lang, instruction, _ = missing
            where = f" of {lang}" if lang else ""
            raise UserError(
                f"{other.path}: lacks the instruction {instruction[:60]!r}{where}, which {one.path} has; a paired "
                "comparison needs the same instructions in both"
            )
    positions = dict(zip(first.keys, first.comparisons.positions_N.tolist(), strict=True))
    positions_N = torch.tensor([positions[key] for key in second.keys])
    comparisons = dataclasses.replace(second.comparisons, positions_N=positions_N)
    return dataclasses.replace(second, comparisons=comparisons)


def _figures(annotations: Annotations, estimates: winrate.Estimates, difficulty: Difficulty | None) -> dict[str, Any]:
    groups = {group: _rates(rates) | _counts(annotations, group) for group, rates in estimates.items()}
    return {
        "annotations": str(annotations.path),
        "model": annotations.model,
        "baseline": annotations.baseline,
        "length_control": "length_controlled_minimal" if difficulty is None else "length_controlled_v1",
        **_by_language(groups),
        "position_bias": annotations.position_bias,
    }


def _rates(rates: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    plain, controlled = (winrate.describe(rates[name]) for name in ("win_rate", "length_controlled_win_rate"))
    return {
        "win_rate": plain["value"],
        "win_rate_interval": [plain["low"], plain["high"]],
        "length_controlled_win_rate": controlled["value"],
        "length_controlled_standard_error": controlled["standard_error"],
        "length_controlled_interval": [controlled["low"], controlled["high"]],
    }


def _counts(annotations: Annotations, group: str) -> dict[str, float]:
    """The counts of all comparisons or of one language; the average over languages has none."""
    if group == winrate.AVERAGE:
        return {}
    comparisons = annotations.comparisons
    return winrate.counts(comparisons if group == winrate.ALL else comparisons.of(group))


def _difference(first: winrate.Estimates, second: winrate.Estimates) -> dict[str, Any]:
    differences = {
        group: {name: winrate.describe(rates_R) for name, rates_R in rates.items()}
        for group, rates in winrate.difference(first, second).items()
    }
    return _by_language(differences)


def _by_language(groups: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of all comparisons, with those of each language and their average nested if there are several."""
    langs = {group: own for group, own in groups.items() if group not in (winrate.ALL, winrate.AVERAGE)}
    nested = {"languages": langs, "average": groups[winrate.AVERAGE]} if langs else {}
    return {**groups[winrate.ALL], **nested}


def show(figures: Mapping[str, Any]) -> None:
    """Print the figures of `measure` as tables."""
    if "difference" not in figures:
        _show_file(figures)
        return
    for name in ("first", "second"):
        _show_file(figures[name])
    _show_difference(figures)


def _show_difference(figures: Mapping[str, Any]) -> None:
    table = _table(f"{figures['second']['annotations']} minus {figures['first']['annotations']}, in percentage points")
    for group, own in _groups(figures["difference"]):
        plain, controlled = own["win_rate"], own["length_controlled_win_rate"]
        cells = ([f"{one['value']:+.1f}", f"{one['low']:+.1f} … {one['high']:+.1f}"] for one in (plain, controlled))
        table.add_row(group, *(cell for pair in cells for cell in pair))
    console.print(table)


def _show_file(figures: Mapping[str, Any]) -> None:
    table = _table(f"{figures['annotations']}: {figures['model']} against {figures['baseline']}, in %")
    for name in _COUNTS:
        table.add_column(name, justify="right")
    for group, own in _groups(figures):
        error = f" ± {own['standard_error']:.1f}" if "standard_error" in own else ""
        table.add_row(
            group,
            f"{own['win_rate']:.1f}{error}",
            "{:.1f} … {:.1f}".format(*own["win_rate_interval"]),
            f"{own['length_controlled_win_rate']:.1f} ± {own['length_controlled_standard_error']:.1f}",
            "{:.1f} … {:.1f}".format(*own["length_controlled_interval"]),
            *(str(own.get(name, "")) for name in _COUNTS),
        )
    console.print(table)
    console.print(f"length control: {figures['length_control']}")
    if bias := figures["position_bias"]:
        console.print(
            f"judged in both orders: {bias['instructions']} instructions; the answer shown second wins "
            f"{bias['second_place_win_rate']:.1f} % (50 % without bias); both orders agree on {bias['agreement']:.1f} %"
        )


def _table(title: str) -> Table:
    return Table("", "win rate", "95 %", "length-controlled", "95 %", title=title, title_justify="left")


def _groups(figures: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield winrate.ALL, figures
    if "languages" in figures:
        yield from figures["languages"].items()
        yield "average", figures["average"]

"""Win rates of annotations, computed and shown. Command: `xlr winrate ANNOTATIONS [OTHER]`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast, overload

import torch
from rich.table import Table

from xlr.errors import UserError
from xlr.evaluation.annotations import Annotations
from xlr.evaluation.facts import (
    CountedRates,
    JudgeAgreement,
    RateDifferences,
    Rates,
    WinRateComparison,
    WinRateDifference,
    WinRates,
)
from xlr.judging.ratenotes import comparable
from xlr.maths import winrate
from xlr.maths.agreement import same_side
from xlr.maths.shares import share_interval
from xlr.maths.winrate import Difficulty
from xlr.terminal.console import console


@overload
def measure(first: Annotations, second: None, difficulty: Difficulty | None) -> WinRates: ...


@overload
def measure(first: Annotations, second: Annotations, difficulty: Difficulty | None) -> WinRateComparison: ...


def measure(
    first: Annotations, second: Annotations | None, difficulty: Difficulty | None
) -> WinRates | WinRateComparison:
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
        "agreement": agreement(first, second),
    }


def agreement(first: Annotations, second: Annotations) -> JudgeAgreement | None:
    """How often two judges prefer the same answer; None if they judged other models, or never both prefer one."""
    if (first.model, first.baseline) != (second.model, second.baseline):
        return None
    known = dict(zip(second.keys, second.comparisons.preferences_N.tolist(), strict=True))
    count, share = same_side(first.comparisons.preferences_N.tolist(), [known[key] for key in first.keys])
    if not count:
        return None
    return {"judgements": count, "agreement": 100 * share, "interval": [100 * x for x in share_interval(share, count)]}


def changes(
    files: Sequence[Annotations], steps: Sequence[tuple[int, int]], difficulty: Difficulty | None
) -> list[WinRateDifference]:
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


def _figures(annotations: Annotations, estimates: winrate.Estimates, difficulty: Difficulty | None) -> WinRates:
    groups = {group: {**_rates(rates), **_counts(annotations, group)} for group, rates in estimates.items()}
    figures = {
        "annotations": str(annotations.path),
        "model": annotations.model,
        "baseline": annotations.baseline,
        "length_control": "length_controlled_minimal" if difficulty is None else "length_controlled_v1",
        **_by_language(groups),
        "position_bias": annotations.position_bias,
    }
    return cast("WinRates", figures)  # the keys depend on the number of languages, which mypy cannot follow


def _rates(rates: Mapping[str, torch.Tensor]) -> Rates:
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


def _difference(first: winrate.Estimates, second: winrate.Estimates) -> WinRateDifference:
    differences = {
        group: {name: winrate.describe(rates_R) for name, rates_R in rates.items()}
        for group, rates in winrate.difference(first, second).items()
    }
    return cast("WinRateDifference", _by_language(differences))


def _by_language(groups: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """The figures of all comparisons, with those of each language and their average nested if there are several."""
    langs = {group: own for group, own in groups.items() if group not in (winrate.ALL, winrate.AVERAGE)}
    nested = {"languages": langs, "average": groups[winrate.AVERAGE]} if langs else {}
    return {**groups[winrate.ALL], **nested}


def show(figures: WinRates | WinRateComparison) -> None:
    """Print the figures of `measure` as tables."""
    if "annotations" in figures:
        _show_file(figures)
        return
    _show_file(figures["first"])
    _show_file(figures["second"])
    _show_difference(figures)
    if own := figures["agreement"]:
        low, high = own["interval"]
        console.print(
            f"the two judges prefer the same answer in {own['agreement']:.0f} % of the {own['judgements']:,} cases in "
            f"which both prefer one (95 %: {low:.0f} … {high:.0f}; by chance 50)"
        )


def _show_difference(figures: WinRateComparison) -> None:
    table = _table(f"{figures['second']['annotations']} minus {figures['first']['annotations']}, in percentage points")
    difference = figures["difference"]
    groups: dict[str, RateDifferences] = {winrate.ALL: difference, **difference.get("languages", {})}
    if "average" in difference:
        groups["average"] = difference["average"]
    for group, own in groups.items():
        both = (own["win_rate"], own["length_controlled_win_rate"])
        cells = ([f"{one['value']:+.1f}", f"{one['low']:+.1f} … {one['high']:+.1f}"] for one in both)
        table.add_row(group, *(cell for pair in cells for cell in pair))
    console.print(table)


def _show_file(figures: WinRates) -> None:
    table = _table(f"{figures['annotations']}: {figures['model']} against {figures['baseline']}, in %")
    for name in ("wins", "ties", "losses", "failed"):
        table.add_column(name, justify="right")
    groups: dict[str, CountedRates] = {winrate.ALL: figures, **figures.get("languages", {})}
    for group, own in groups.items():
        counts = (own["wins"], own["ties"], own["losses"], own["failed"])
        table.add_row(group, *_cells(own, f" ± {own['standard_error']:.1f}"), *map(str, counts))
    if "average" in figures:
        table.add_row("average", *_cells(figures["average"], ""))
    console.print(table)
    console.print(f"length control: {comparable(figures['length_control'])}")
    if bias := figures["position_bias"]:
        console.print(
            f"judged in both orders: {bias['instructions']} instructions; the answer shown second wins "
            f"{bias['second_place_win_rate']:.1f} % (50 % without bias); both orders agree on {bias['agreement']:.1f} %"
        )


def _cells(rates: Rates, error: str) -> list[str]:
    """Both win rates with their intervals, as text; `error` follows the plain win rate."""
    return [
        f"{rates['win_rate']:.1f}{error}",
        "{:.1f} … {:.1f}".format(*rates["win_rate_interval"]),
        f"{rates['length_controlled_win_rate']:.1f} ± {rates['length_controlled_standard_error']:.1f}",
        "{:.1f} … {:.1f}".format(*rates["length_controlled_interval"]),
    ]


def _table(title: str) -> Table:
    return Table("", "win rate", "95 %", "length-controlled", "95 %", title=title, title_justify="left")

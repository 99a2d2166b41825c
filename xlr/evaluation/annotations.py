"""Annotations in AlpacaEval's format: read, measured, shown. `xlr winrate ANNOTATIONS [OTHER]`."""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from xlr.data.jsonfiles import read_json_list
from xlr.errors import UserError
from xlr.maths import winrate
from xlr.maths.winrate import Comparisons, Difficulty
from xlr.progress import console

_TEXTS = ("instruction", "output_1", "output_2", "generator_1", "generator_2")

# Language, instruction, and which of its repetitions.
Key = tuple[str, str, int]


@dataclass(frozen=True)
class Annotations:
    """A file's judgements; an instruction judged in both orders is one comparison: their mean, failed if one failed."""

    path: Path
    model: str
    baseline: str
    keys: list[Key]
    baseline_answers: list[str]
    comparisons: Comparisons
    position_bias: dict[str, float] | None


@dataclass(frozen=True)
class _Judgement:
    """One judgement of an instruction: `preference` is the model's, `answers` are the baseline's and the model's."""

    preference: float
    answers: tuple[str, str]
    swapped: bool


def read(path: Path) -> Annotations:
    """Read a file, or all of a folder; the model is `generator_2` of the first row, rows with the two generators
    swapped are turned round.

    A row may hold the judge's `preferences` in both orders, in its own terms, of which its `preference` is the mean.

    Raises:
        UserError: naming the row and key that is missing or wrong.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: holds no annotations; a folder of them has a JSON file a language")
    rows = [row for file in files for row in read_json_list(file, "an object of AlpacaEval's annotations")]
    found: defaultdict[Key, list[_Judgement]] = defaultdict(list)
    seen: Counter[tuple[str, str, bool]] = Counter()
    names = ("", "")
    for place, row in rows:
        for name in (*_TEXTS, "preference"):
            if name not in row:
                raise UserError(f"{place}: has no {name!r}; AlpacaEval's annotations have it in every row")
        for name in _TEXTS:
            if not isinstance(row[name], str) or not (row[name].strip() or _lost(row, name)):
                raise UserError(f"{place}: {name} is empty or no text; fill it in, or remove the row")
        own = (row["generator_1"], row["generator_2"])
        names = own if not found else names
        if own not in (names, names[::-1]):
            raise UserError(
                f"{place}: compares {own[0]!r} with {own[1]!r}, the rows before it {names[0]!r} with {names[1]!r}; "
                "one file holds one model and one baseline: split it by generator_1 and generator_2"
            )
        swapped = own != names
        lang = str(row.get("lang", row.get("language", "")))
        key = (lang, row["instruction"], seen[lang, row["instruction"], swapped])
        seen[lang, row["instruction"], swapped] += 1
        answers = (row["output_1"], row["output_2"])
        if swapped:
            answers = answers[::-1]
        if any(other.answers != answers for other in found[key]):
            raise UserError(f"{place}: its answers differ from those of the other order; judge the same ones twice")
        for turned, preference in enumerate(_preferences(row, place)):
            second = 1 - preference if swapped else preference
            found[key].append(_Judgement(second, answers, swapped != bool(turned)))
    return _annotations(path, names, found)


def _lost(row: Mapping[str, Any], name: str) -> bool:
    """Whether an empty text is an answer and judged as it must be: it loses, or ties with another empty one."""
    if name not in ("output_1", "output_2"):
        return False
    both = not str(row["output_1"]).strip() and not str(row["output_2"]).strip()
    return bool(row["preference"] == (1.5 if both else 2 if name == "output_1" else 1))


def _preferences(row: Mapping[str, Any], place: str) -> list[float]:
    """The row's preference, or one for each order in which the judge was asked; in the row's own terms."""
    whole = _preference(row["preference"], place)
    sides = [_preference(value, place) for value in row.get("preferences") or ()]
    if len(sides) != 2:
        return [whole]
    mean = sum(sides) / 2
    if not (abs(mean - whole) < 1e-9 or (math.isnan(mean) and math.isnan(whole))):
        raise UserError(f"{place}: preference is not the mean of preferences; mend or remove the row")
    return sides


def _preference(value: Any, place: str) -> float:
    """The probability that the second answer is better, NaN where judging failed."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        raise UserError(
            f"{place}: preference {value!r} is none of AlpacaEval's: 1 (output_1 is better) to 2 (output_2 is better), "
            "1.5 or 0 (a tie), null (failed); mend or remove the row"
        )
    return value - 1 if value else 0.5


def _annotations(path: Path, names: tuple[str, str], found: Mapping[Key, list[_Judgement]]) -> Annotations:
    langs = tuple(lang for lang, _, _ in found)
    preferences = [sum(one.preference for one in own) / len(own) for own in found.values()]
    judged = Counter(lang for lang, value in zip(langs, preferences, strict=True) if not math.isnan(value))
    for lang in dict.fromkeys(langs) or [""]:
        if judged[lang] < 2:
            where = f" in {lang}" if lang else ""
            raise UserError(f"{path}: holds {judged[lang]} judged instructions{where}; a win rate needs two at least")
    gaps = [len(own[0].answers[0]) - len(own[0].answers[1]) for own in found.values()]
    next_place: Counter[str] = Counter()
    places = []
    for lang in langs:
        places.append(next_place[lang])
        next_place[lang] += 1
    comparisons = Comparisons(langs, _double(preferences), _double(gaps), torch.tensor(places))
    answers = [own[0].answers[0] for own in found.values()]
    return Annotations(path, names[1], names[0], list(found), answers, comparisons, _position_bias(found))


def _double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _position_bias(found: Mapping[Key, list[_Judgement]]) -> dict[str, float] | None:
    """How often the answer in second place wins, 50 without bias, and how often both orders agree; in percent."""
    both = [own for own in found.values() if len(own) == 2 and not any(math.isnan(one.preference) for one in own)]
    if not both:
        return None
    second = [1 - one.preference if one.swapped else one.preference for own in both for one in own]
    sides = [[(one.preference > 0.5) - (one.preference < 0.5) for one in own] for own in both]
    return {
        "instructions": len(both),
        "second_place_win_rate": 100 * sum(second) / len(second),
        "agreement": 100 * sum(one == other for one, other in sides) / len(both),
    }


def measure(first: Annotations, second: Annotations | None, difficulty: Difficulty | None) -> dict[str, Any]:
    """All figures of a file, or of two files and of the second less the first, ready for JSON; in percent.

    Raises:
        UserError: the two files' instructions differ, or the table of difficulties has fewer.
    """
    if difficulty is not None and first.comparisons.positions_N.max() >= len(difficulty.difficulties_P):
        raise UserError(
            f"{first.path}: has more instructions than the {len(difficulty.difficulties_P)} of --difficulty, which "
            "belong to AlpacaEval's by their order; leave --difficulty out"
        )
    own = winrate.estimates(first.comparisons, difficulty)
    if second is None:
        return _figures(first, own, difficulty)
    second = _in_places_of(first, second)
    other = winrate.estimates(second.comparisons, difficulty)
    return {
        "first": _figures(first, own, difficulty),
        "second": _figures(second, other, difficulty),
        "difference": _difference(own, other),
    }


def changes(
    files: Sequence[Annotations], steps: Sequence[tuple[int, int]], difficulty: Difficulty | None
) -> list[dict[str, Any]]:
    """Of each step from one file to another: the second's rates less the first's, as `measure` has it.

    Raises:
        UserError: the files' instructions differ.
    """
    found = [winrate.estimates(_in_places_of(files[0], file).comparisons, difficulty) for file in files]
    return [_difference(found[first], found[second]) for first, second in steps]


def _difference(first: winrate.Estimates, second: winrate.Estimates) -> dict[str, Any]:
    differences = {
        group: {name: winrate.describe(rates_R) for name, rates_R in rates.items()}
        for group, rates in winrate.difference(first, second).items()
    }
    return _by_language(differences)


def _in_places_of(first: Annotations, second: Annotations) -> Annotations:
    for one, other in ((first, second), (second, first)):
        there = set(other.keys)
        lacking = next((key for key in one.keys if key not in there), None)
        if lacking is not None:
            lang = f" of {lacking[0]}" if lacking[0] else ""
            raise UserError(
                f"{other.path}: lacks the instruction {lacking[1][:60]!r}{lang}, which {one.path} has; a paired "
                "comparison needs the same instructions in both"
            )
    place = dict(zip(first.keys, first.comparisons.positions_N.tolist(), strict=True))
    positions_N = torch.tensor([place[key] for key in second.keys])
    return dataclasses.replace(second, comparisons=dataclasses.replace(second.comparisons, positions_N=positions_N))


def _figures(annotations: Annotations, found: winrate.Estimates, difficulty: Difficulty | None) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {}
    for group, rates in found.items():
        plain, controlled = (winrate.describe(rates[name]) for name in ("win_rate", "length_controlled_win_rate"))
        groups[group] = {
            "win_rate": plain["value"],
            "win_rate_interval": [plain["low"], plain["high"]],
            "length_controlled_win_rate": controlled["value"],
            "length_controlled_standard_error": controlled["standard_error"],
            "length_controlled_interval": [controlled["low"], controlled["high"]],
        }
        if group != winrate.AVERAGE:
            comparisons = annotations.comparisons
            groups[group] |= winrate.counts(comparisons if group == winrate.ALL else comparisons.of(group))
    return {
        "annotations": str(annotations.path),
        "model": annotations.model,
        "baseline": annotations.baseline,
        "length_control": "length_controlled_minimal" if difficulty is None else "length_controlled_v1",
        **_by_language(groups),
        "position_bias": annotations.position_bias,
    }


def _by_language(groups: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """All comparisons' figures on top, those of languages below them where there are several."""
    langs = {group: own for group, own in groups.items() if group not in (winrate.ALL, winrate.AVERAGE)}
    below = {"languages": langs, "average": groups[winrate.AVERAGE]} if langs else {}
    return {**groups[winrate.ALL], **below}


def show(found: dict[str, Any]) -> None:
    """Print the figures as tables."""
    if "difference" not in found:
        _show_file(found)
        return
    for name in ("first", "second"):
        _show_file(found[name])
    title = f"{found['second']['annotations']} less {found['first']['annotations']}, in points"
    table = Table("", "win rate", "95 %", "length-controlled", "95 %", title=title, title_justify="left")
    for group, own in _groups(found["difference"]):
        plain, controlled = own["win_rate"], own["length_controlled_win_rate"]
        cells = ([f"{one['value']:+.1f}", f"{one['low']:+.1f} … {one['high']:+.1f}"] for one in (plain, controlled))
        table.add_row(group, *(cell for pair in cells for cell in pair))
    console.print(table)


def _groups(figures: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    below = [*figures["languages"].items(), ("average", figures["average"])] if "languages" in figures else []
    return [(winrate.ALL, figures), *below]


def _show_file(figures: dict[str, Any]) -> None:
    title = f"{figures['annotations']}: {figures['model']} against {figures['baseline']}, in %"
    table = Table("", "win rate", "95 %", "length-controlled", "95 %", title=title, title_justify="left")
    for name in ("wins", "ties", "losses", "failed"):
        table.add_column(name, justify="right")
    for group, own in _groups(figures):
        error = f" ± {own['standard_error']:.1f}" if "standard_error" in own else ""
        table.add_row(
            group,
            f"{own['win_rate']:.1f}{error}",
            "{:.1f} … {:.1f}".format(*own["win_rate_interval"]),
            f"{own['length_controlled_win_rate']:.1f} ± {own['length_controlled_standard_error']:.1f}",
            "{:.1f} … {:.1f}".format(*own["length_controlled_interval"]),
            *(str(own.get(name, "")) for name in ("wins", "ties", "losses", "failed")),
        )
    console.print(table)
    console.print(f"length control: {figures['length_control']}")
    if bias := figures["position_bias"]:
        console.print(
            f"judged in both orders: {bias['instructions']}; second place wins {bias['second_place_win_rate']:.1f} % "
            f"(50 is no bias), both orders agree on {bias['agreement']:.1f} %"
        )

"""Reads annotations in AlpacaEval's format: a judge's preferences between a baseline's answers and a model's."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from xlr.data.fields import is_text
from xlr.data.jsonfiles import Row, read_json_list
from xlr.errors import UserError
from xlr.evaluation.facts import PositionBias
from xlr.foreign.texts import brief, control_in
from xlr.maths.winrate import Comparisons

_EXPECTED = "an object of AlpacaEval's annotations"
_TEXTS = ("instruction", "output_1", "output_2", "generator_1", "generator_2")
_OUTPUTS = ("output_1", "output_2")

# Language, instruction, and the number of the instruction's earlier occurrences.
Key: TypeAlias = tuple[str, str, int]


@dataclass(frozen=True)
class Annotations:
    """The judgements of one file or folder.

    An instruction that was judged in both orders is one comparison. Its preference is the mean of both, or NaN if
    judging failed in one of them.
    """

    path: Path
    model: str
    baseline: str
    keys: list[Key]
    baseline_answers: list[str]
    comparisons: Comparisons
    position_bias: PositionBias | None


@dataclass(frozen=True)
class _Checked:
    """A checked row; `preferences` has one value for each order in which the judge was asked, output_1 first."""

    position: str
    lang: str
    instruction: str
    generators: tuple[str, str]
    outputs: tuple[str, str]
    preferences: list[float]


@dataclass(frozen=True)
class _Judgement:
    """One judgement of an instruction.

    `preference` is the probability that the model's answer is better; `answers` are the baseline's and the model's;
    `swapped` is True if the judge saw the model's answer first.
    """

    preference: float
    answers: tuple[str, str]
    swapped: bool


def read(path: Path) -> Annotations:
    """Read a JSON file, or all JSON files of a folder.

    The model is `generator_2` of the first row; rows with the generators swapped are turned around. A row may also have
    `preferences`, the judge's preferences in both orders, whose mean must be its `preference`.

    Raises:
        UserError: a row is broken, the files compare more than two models, or a language has fewer than two judgements.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: the folder has no annotations; it needs a JSON file for each language")
    rows = [_checked(position, row) for file in files for position, row in read_json_list(file, _EXPECTED)]
    baseline, model = rows[0].generators if rows else ("", "")
    found = _by_instruction(rows, (baseline, model))
    langs = tuple(lang for lang, _, _ in found)
    answers = [own[0].answers for own in found.values()]
    preferences = [sum(one.preference for one in own) / len(own) for own in found.values()]
    _require_enough(path, langs, preferences)
    gaps = [len(baseline_answer) - len(model_answer) for baseline_answer, model_answer in answers]
    comparisons = Comparisons(langs, _double(preferences), _double(gaps), torch.tensor(_positions(langs)))
    baseline_answers = [baseline_answer for baseline_answer, _ in answers]
    return Annotations(path, model, baseline, list(found), baseline_answers, comparisons, _position_bias(found))


def _checked(position: str, row: Row) -> _Checked:
    for name in (*_TEXTS, "preference"):
        if name not in row:
            raise UserError(f"{position}: has no {name!r}; every row of AlpacaEval's annotations needs it")
    for name in _TEXTS:
        if not isinstance(row[name], str) or not _filled(row, name):
            raise UserError(f"{position}: {name} is empty or not a string; fill it in, or remove the row")
    return _Checked(
        position,
        _language(position, row),
        row["instruction"],
        (row["generator_1"], row["generator_2"]),
        (row["output_1"], row["output_2"]),
        _preferences(position, row),
    )


def _language(position: str, row: Row) -> str:
    """The row's language; empty if it has none."""
    given = row.get("lang", row.get("language"))
    if given is not None and (not isinstance(given, str) or control_in(given)):
        raise UserError(f"{position}: lang is {brief(given)}; write a language code, or remove the key")
    return given or ""


def _filled(row: Row, name: str) -> bool:
    if name in _OUTPUTS:  # a model may write zero-width characters alone, and xlr then judges them
        return bool(row[name].strip()) or _empty_lost(row, name)
    return is_text(row[name])


def _empty_lost(row: Row, name: str) -> bool:
    """True if an empty answer was scored correctly: it loses, or ties with another empty one."""
    both = not str(row["output_1"]).strip() and not str(row["output_2"]).strip()
    return bool(row["preference"] == (1.5 if both else 2 if name == "output_1" else 1))


def _preferences(position: str, row: Row) -> list[float]:
    """The row's preference, or its two `preferences` if the judge was asked in both orders; output_1 first."""
    whole = _probability(position, row["preference"])
    given = row.get("preferences")
    if given is not None and not (isinstance(given, list) and len(given) <= 2):
        raise UserError(f"{position}: preferences is {brief(given)}; write a list of one or two preferences, or none")
    sides = [_probability(position, value) for value in given or ()]
    mean = sum(sides) / len(sides) if sides else whole
    if not (abs(mean - whole) < 1e-9 or (math.isnan(mean) and math.isnan(whole))):
        raise UserError(f"{position}: preference is not the mean of preferences; fix or remove the row")
    return sides if len(sides) == 2 else [whole]


def _probability(position: str, value: Any) -> float:
    """The probability that output_2 is better, from a preference on AlpacaEval's scale; NaN if judging failed."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        raise UserError(
            f"{position}: preference {brief(value)} is not on AlpacaEval's scale: 1 (output_1 is better) to 2 "
            "(output_2 is better), 1.5 or 0 (a tie), null (judging failed); fix or remove the row"
        )
    return value - 1 if value else 0.5


def _by_instruction(rows: Iterable[_Checked], generators: tuple[str, str]) -> dict[Key, list[_Judgement]]:
    """The judgements of each instruction, with the rows that swap the generators turned around."""
    found: defaultdict[Key, list[_Judgement]] = defaultdict(list)
    seen: Counter[tuple[str, str, bool]] = Counter()
    for row in rows:
        swapped = _is_swapped(row, generators)
        key = (row.lang, row.instruction, seen[row.lang, row.instruction, swapped])
        seen[row.lang, row.instruction, swapped] += 1
        judgements = _judgements(row, swapped)
        if any(other.answers != judgements[0].answers for other in found[key]):
            raise UserError(
                f"{row.position}: its answers differ from the answers of the other order; both orders must compare the "
                "same two answers"
            )
        found[key] += judgements
    return found


def _is_swapped(row: _Checked, generators: tuple[str, str]) -> bool:
    if row.generators not in (generators, generators[::-1]):
        raise UserError(
            f"{row.position}: compares {brief(row.generators[0])} with {brief(row.generators[1])}, but the rows before "
            f"compare {brief(generators[0])} with {brief(generators[1])}; split the file: each needs one "
            "model and one baseline"
        )
    return row.generators != generators


def _judgements(row: _Checked, swapped: bool) -> list[_Judgement]:
    answers = row.outputs[::-1] if swapped else row.outputs
    return [
        _Judgement(1 - preference if swapped else preference, answers, swapped != bool(other_order))
        for other_order, preference in enumerate(row.preferences)
    ]


def _require_enough(path: Path, langs: Sequence[str], preferences: Sequence[float]) -> None:
    judged = Counter(lang for lang, value in zip(langs, preferences, strict=True) if not math.isnan(value))
    for lang in dict.fromkeys(langs) or [""]:
        if judged[lang] < 2:
            where = f" in {lang}" if lang else ""
            raise UserError(f"{path}: has {judged[lang]} judged instructions{where}; a win rate needs at least two")


def _positions(langs: Iterable[str]) -> list[int]:
    """The position of each comparison among the comparisons of its language."""
    seen: Counter[str] = Counter()
    positions = []
    for lang in langs:
        positions.append(seen[lang])
        seen[lang] += 1
    return positions


def _double(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _position_bias(found: Mapping[Key, list[_Judgement]]) -> PositionBias | None:
    """How often the answer shown second wins (50 without bias) and how often both orders agree, in percent.

    None if no instruction was judged in both orders.
    """
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

"""Pairs and judged answers for the page: an even sample of each language, with long texts shortened."""

from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

from typing_extensions import TypedDict

from xlr.evaluation.facts import AnnotationRow
from xlr.findings.found import Run, label, models
from xlr.findings.numbers import number
from xlr.foreign.texts import beginning
from xlr.records import ModelKey, Pair
from xlr.run.manifests import json_of, rows_of

SHOWN = 800  # examples of all runs together
TEXT_CHARS = 1500

Row = TypeVar("Row")


class Answer(TypedDict):
    """One of the two answers of an example."""

    name: str
    note: str
    text: tuple[str, int]
    """The text, and how many characters are left out at its end."""
    better: bool


class Example(TypedDict):
    """A pair or a judged answer."""

    run: str
    kind: Literal["pairs", "judged answers"]
    model: str
    lang: str
    id: str
    title: str
    note: str
    instruction: tuple[str, int]
    """The text, and how many characters are left out at its end."""
    answers: list[Answer]


class Examples(TypedDict):
    """The examples that are shown, and the number of all there are."""

    rows: list[Example]
    total: int


def collect(runs: Sequence[Run]) -> Examples:
    """The examples of all runs: the same number for each run, model, kind and language."""
    groups = sum(
        len(run.found["languages"]) * ("pair" in model["stages"])
        + len(run.found["evaluated"]) * bool(model["judgements"])
        for run in runs
        for _, model in models(run.found)
    )
    each = max(1, SHOWN // max(groups, 1))
    rows: list[Example] = []
    total = 0
    for run in runs:
        for model, group in _groups(run):
            total += len(group)
            rows += [_example(run.name, model, row) for row in evenly(group, each)]
    return {"rows": rows, "total": total}


def evenly(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, evenly spaced."""
    if len(rows) <= count:
        return list(rows)
    return [rows[number * len(rows) // count] for number in range(count)]


def _groups(run: Run) -> Iterator[tuple[ModelKey, Sequence[Pair | AnnotationRow]]]:
    """The pairs, then the judged answers, of each model and language."""
    for key, model in models(run.found):
        folder = run.directory.iteration(key)
        if "pair" in model["stages"]:
            pairs = rows_of(folder / "pairs", Pair)
            for lang in run.found["languages"]:
                yield key, [pair for pair in pairs if pair.lang == lang]
        if model["judgements"]:
            judged = run.directory.judged(key, "judgements", run.config.judge.folder)
            for lang in run.found["evaluated"]:
                yield key, json_of(judged, f"annotations/{lang}.json", list[AnnotationRow]) or []


def _example(run: str, model: ModelKey, row: Pair | AnnotationRow) -> Example:
    return _pair(run, model, row) if isinstance(row, Pair) else _judged(run, model, row)


def _pair(run: str, model: ModelKey, pair: Pair) -> Example:
    return {
        "run": run,
        "kind": "pairs",
        "model": _option(model),
        "lang": pair.lang,
        "id": pair.id,
        "title": f"pair {pair.name}",
        "note": f"margin {pair.chosen_score - pair.rejected_score:.2f}",
        "instruction": shortened(pair.prompt[-1]["content"]),
        "answers": [
            _answer("chosen", f"score {pair.chosen_score:.2f}", pair.chosen[-1]["content"], True),
            _answer("rejected", f"score {pair.rejected_score:.2f}", pair.rejected[-1]["content"], False),
        ],
    }


def _judged(run: str, model: ModelKey, row: AnnotationRow) -> Example:
    preference = row["preference"]
    wins = preference is not None and preference > 1.5
    loses = preference is not None and preference < 1.5
    return {
        "run": run,
        "kind": "judged answers",
        "model": _option(model),
        "lang": row["lang"],
        "id": row["id"],
        "title": f"answer {row['id']}",
        "note": _verdict(row),
        "instruction": shortened(row["instruction"]),
        "answers": [
            _answer(label(model), "preferred" if wins else "", row["output_2"], wins),
            _answer(row["generator_1"], "preferred" if loses else "", row["output_1"], loses),
        ],
    }


def _verdict(row: AnnotationRow) -> str:
    if row["preference"] is None:
        return "judging failed"
    orders = ", ".join(number(one, ".2f") or "failed" for one in row["preferences"])
    how = f"in each order {orders}" if orders else "decided without the judge"
    return f"preference {row['preference']:.2f} on a scale from 1 to 2, {how}"


def _option(model: ModelKey) -> str:
    """How the page's filter names a model."""
    return f"iteration {model}" if isinstance(model, int) else model


def _answer(name: str, note: str, text: str, better: bool) -> Answer:
    notes = [note] * bool(note) + [f"{len(text):,} characters"]
    return {"name": name, "note": " · ".join(notes), "text": shortened(text), "better": better}


def shortened(text: str) -> tuple[str, int]:
    """The beginning of a text, and how many characters are left out at its end."""
    kept = beginning(text, TEXT_CHARS)
    return kept, len(text) - len(kept)

"""Pairs and judged answers for the report's browser: an even sample of every language, cut to a page's size."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from xlr.records import Pair
from xlr.report.tables import Found, label, number
from xlr.run.context import Context
from xlr.run.files import read_json
from xlr.run.rows import read_rows

SHOWN = 800  # in all
TEXT_CHARS = 1500

Row = TypeVar("Row")


def collect(runs: Sequence[tuple[Context, Found]]) -> dict[str, Any]:
    """`rows` to show and how many there are in `total`.

    A row's texts are pairs of what is shown and how many characters are not.
    """
    groups = sum(
        len(found["languages"]) * ("pair" in entry["stages"]) + len(found["evaluated"]) * bool(entry["judgements"])
        for _, found in runs
        for entry in found["iterations"].values()
    )
    each = max(1, SHOWN // max(groups, 1))
    rows: list[dict[str, Any]] = []
    total = 0
    for context, found in runs:
        for kind, model, lang, group in _groups(context, found):
            total += len(group)
            of = f"iteration {model}" if isinstance(model, int) else model
            own = {"run": found["name"], "kind": kind, "model": of, "lang": lang}
            examples = _pair_example if kind == "pairs" else _judged_example
            rows += [own | examples(row, label(str(model))) for row in evenly(group, each)]
    return {"rows": rows, "total": total}


def evenly(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, spread evenly over all."""
    if len(rows) <= count:
        return list(rows)
    return [rows[number * len(rows) // count] for number in range(count)]


def _groups(context: Context, found: Found) -> Iterator[tuple[str, int | str, str, Sequence[Any]]]:
    """Kind, model, language and all of its pairs or judgements."""
    for model in context.models:
        folder, entry = context.run.iteration(model), found["iterations"][str(model)]
        if "pair" in entry["stages"] and (folder / "pairs").is_dir():
            pairs = read_rows(folder / "pairs", Pair)
            for lang in found["languages"]:
                yield "pairs", model, lang, [pair for pair in pairs if pair.lang == lang]
        if entry["judgements"]:
            for lang in found["evaluated"]:
                file = folder / "judgements" / "annotations" / f"{lang}.json"
                yield "judged answers", model, lang, read_json(file) if file.is_file() else []


def _pair_example(pair: Pair, model: str) -> dict[str, Any]:
    return {
        "id": pair.id,
        "title": f"pair {pair.id}",
        "note": f"margin {pair.chosen_score - pair.rejected_score:.2f}",
        "instruction": _cut(pair.prompt[-1]["content"]),
        "answers": [
            _answer("chosen", f"score {pair.chosen_score:.2f}", pair.chosen[-1]["content"], True),
            _answer("rejected", f"score {pair.rejected_score:.2f}", pair.rejected[-1]["content"], False),
        ],
    }


def _judged_example(row: dict[str, Any], model: str) -> dict[str, Any]:
    preference = row["preference"]
    if preference is None:
        verdict = "judging failed"
    else:
        orders = ", ".join(number(one, ".2f") or "failed" for one in row["preferences"])
        verdict = (
            f"preference {preference:.2f} of 1 to 2, {f'by order {orders}' if orders else 'without asking the judge'}"
        )
    wins = preference is not None and preference > 1.5, preference is not None and preference < 1.5
    return {
        "id": str(row["id"]),
        "title": f"answer {row['id']}",
        "note": verdict,
        "instruction": _cut(row["instruction"]),
        "answers": [
            _answer(model, "preferred" if wins[0] else "", row["output_2"], wins[0]),
            _answer(row["generator_1"], "preferred" if wins[1] else "", row["output_1"], wins[1]),
        ],
    }


def _answer(name: str, note: str, text: str, better: bool) -> dict[str, Any]:
    notes = [note] * bool(note) + [f"{len(text):,} characters"]
    return {"name": name, "note": " · ".join(notes), "text": _cut(text), "better": better}


def _cut(text: str) -> tuple[str, int]:
    return text[:TEXT_CHARS], max(len(text) - TEXT_CHARS, 0)

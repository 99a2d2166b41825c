"""Runs against each other: is the other one better, in each language, and how sure is that.

The last judged models are compared answer by answer, which needs the same judge, instructions and baseline's answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xlr.evaluation import annotations, difficulty, winrates
from xlr.evaluation.annotations import Annotations
from xlr.report.conclusion import Conclusion, changed, sentence, telling_rate
from xlr.report.tables import Found, label, of_languages
from xlr.run.context import Context


@dataclass(frozen=True)
class _Side:
    """A run, and its last judged model."""

    context: Context
    found: Found

    @property
    def name(self) -> str:
        return str(self.found["name"])

    @cached_property
    def model(self) -> int:
        """The iteration, or -1 where none was judged."""
        entries = self.found["iterations"].items()
        return max((int(model) for model, entry in entries if model.isdigit() and entry["judgements"]), default=-1)

    @property
    def title(self) -> str:
        return f"{self.name}'s {label(str(self.model))}"

    @property
    def judge(self) -> dict[str, Any]:
        """What decides a verdict, but for the baseline, whose answers are compared themselves."""
        own = self.found["settings"]
        return {key: own[key] for key in own if key.startswith("judge.") and key != "judge.baseline"}

    @property
    def figures(self) -> dict[str, Any]:
        return dict(self.found["iterations"][str(self.model)]["judgements"])

    @cached_property
    def file(self) -> Annotations:
        return annotations.read(self.context.run.iteration(self.model) / "judgements" / "annotations")

    @property
    def baseline_answers(self) -> dict[annotations.Key, str]:
        return dict(zip(self.file.keys, self.file.baseline_answers, strict=True))


def compare(runs: Sequence[tuple[Context, Found]]) -> list[tuple[str, Conclusion]]:
    """Each run after the first against the first: a heading, and the answer or why there is none."""
    first, *others = (_Side(*run) for run in runs)
    return [(f"{other.name} against {first.name}", _compare(first, other)) for other in others]


def _compare(first: _Side, other: _Side) -> Conclusion:
    if why := _obstacle(first, other):
        return Conclusion(f"{other.name} is not compared with {first.name} answer by answer: {why}.", "", "", [])
    table = difficulty.load(first.context.config.judge.difficulty)
    (difference,) = winrates.changes([first.file, other.file], [(0, 1)], table)
    rate = telling_rate(*((side.found, side.figures) for side in (first, other)))
    findings = [changed(lang, own[rate.value]) for lang, own in of_languages(first.found, difference)]
    judge, baseline = (first.figures[key] for key in ("judge", "baseline"))
    return Conclusion(
        sentence(first.found["names"], other.title, first.title, findings),
        f"Judge: {judge}, which compared the answers of both with the same ones of {baseline}{rate.note}",
        f"{rate.name}, {first.title} → {other.title}, in points",
        findings,
    )


def _obstacle(first: _Side, other: _Side) -> str | None:
    """Why two runs cannot be compared."""
    for side in (first, other):
        if side.model < 0:
            return f"{side.name} has no judgements yet"
    here = other.judge
    for key, there in first.judge.items():
        if there != here[key]:
            return f"{key} is {there} there and {here[key]} here"
    if first.baseline_answers.keys() != other.baseline_answers.keys():
        return "their judged instructions differ"
    return "the baseline's answers differ" if first.baseline_answers != other.baseline_answers else None

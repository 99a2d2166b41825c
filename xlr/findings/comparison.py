"""Several runs: is the last judged model of each better than that of the first run, in each language?

The models are compared answer by answer, which needs the same judge, the same instructions and the same answers of the
baseline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xlr.evaluation import annotations, difficulty, winrates
from xlr.evaluation.annotations import Annotations
from xlr.findings.conclusion import Conclusion, changed, judged_counts, preferred_rate, sentence, together
from xlr.findings.found import JudgedWinRates, Run, by_language, label, models


@dataclass(frozen=True)
class _Side:
    """A run and its last judged iteration."""

    run: Run
    iteration: int
    figures: JudgedWinRates

    @property
    def title(self) -> str:
        return f"{self.run.name}'s {label(self.iteration)}"

    @property
    def judge(self) -> dict[str, Any]:
        """The settings that decide a verdict, without the baseline: its answers themselves are compared."""
        own = self.run.found["settings"]
        return {key: own[key] for key in own if key.startswith("judge.") and key != "judge.baseline"}

    @cached_property
    def file(self) -> Annotations:
        folder = self.run.directory.judged(self.iteration, "judgements", self.run.config.judge.folder)
        return annotations.read(folder / "annotations")

    @property
    def baseline_answers(self) -> dict[annotations.Key, str]:
        return dict(zip(self.file.keys, self.file.baseline_answers, strict=True))


def compare(runs: Sequence[Run]) -> list[tuple[str, Conclusion]]:
    """Each run after the first against the first: a heading, and the answer or the reason why there is none."""
    first, *others = runs
    return [(f"{other.name} against {first.name}", _compare(first, other)) for other in others]


def _compare(first: Run, other: Run) -> Conclusion:
    refusal = f"{other.name} is not compared with {first.name} answer by answer"
    first_side = _side(first)
    if first_side is None:
        return Conclusion(f"{refusal}: {first.name} has no judgements yet.")
    other_side = _side(other)
    if other_side is None:
        return Conclusion(f"{refusal}: {other.name} has no judgements yet.")
    if obstacle := _obstacle(first_side, other_side):
        return Conclusion(f"{refusal}: {obstacle}.")
    return _answer_by_answer(first_side, other_side)


def _side(run: Run) -> _Side | None:
    """The last judged iteration of a run, if one is judged."""
    judged = [(key, model["judgements"]) for key, model in models(run.found) if isinstance(key, int)]
    sides = [_Side(run, iteration, figures) for iteration, figures in judged if figures]
    return sides[-1] if sides else None


def _answer_by_answer(first: _Side, other: _Side) -> Conclusion:
    table = difficulty.load(first.run.config.judge.difficulty)
    differences: list[Any] = winrates.changes([first.file, other.file], [(0, 1)], table)
    rate = preferred_rate(*((side.run.found, side.figures) for side in (first, other)))
    found = first.run.found
    counts = judged_counts(other.run.found, other.figures)
    rows = by_language(found, differences[0])
    findings = together([changed(lang, own[rate.value], counts.get(lang)) for lang, own in rows])
    return Conclusion(
        sentence(found["names"], other.title, first.title, findings),
        f"Judge: {first.figures['judge']}, which compared the answers of both with the same answers of "
        f"{first.figures['baseline']}{rate.note}",
        f"{rate.name}, {first.title} → {other.title}, in percentage points",
        findings,
    )


def _obstacle(first: _Side, other: _Side) -> str | None:
    """Why two judged runs cannot be compared, or None."""
    other_judge = other.judge
    for key, value in first.judge.items():
        if value != other_judge[key]:
            return f"{key} is {value} in {first.run.name} and {other_judge[key]} in {other.run.name}"
    if first.baseline_answers.keys() != other.baseline_answers.keys():
        return "their judged instructions differ"
    return "the baseline's answers differ" if first.baseline_answers != other.baseline_answers else None

"""The variants of a sweep against its base: answer by answer, on the same prompts, with correction for their number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from xlr.detection import detector, is_in
from xlr.findings.comparison import compare
from xlr.findings.conclusion import Conclusion, Finding, of_training, sentence
from xlr.findings.found import AVERAGE, Found, Run, StageFound, label, models, stages
from xlr.findings.numbers import interval
from xlr.maths.paired import Paired, mean_difference
from xlr.maths.shares import Z, holm, two_sided_p
from xlr.records import Response, Score
from xlr.run.manifests import rows_of

Key = tuple[str, str]
"""Language and prompt."""


@dataclass(frozen=True)
class Side:
    """A variant and its last iteration."""

    run: Run
    iteration: int

    @property
    def title(self) -> str:
        """How sentences call its model."""
        return f"{self.run.name}'s {label(self.iteration)}"

    @property
    def _folder(self) -> Path:
        return self.run.directory.iteration(self.iteration) / "eval"

    @cached_property
    def _scores(self) -> dict[Key, Score]:
        return {(row.lang, row.id): row for row in rows_of(self._folder, Score, "scores/*")}

    @cached_property
    def rewards(self) -> dict[Key, float]:
        """log pi^0 - log pi_I of each answer that could be scored."""
        return {key: row.reward for key, row in self._scores.items()}

    @cached_property
    def complete(self) -> dict[Key, float]:
        """1 for an answer that ends by itself, else 0."""
        rows = rows_of(self._folder, Response, "responses/*")
        return {(row.lang, row.id): float(row.finish_reason == "stop") for row in rows}

    @cached_property
    def in_language(self) -> dict[Key, float]:
        """1 for an answer in the language that was asked for, else 0; without languages that no detector knows."""
        found = self._scores
        return {
            key: float(key in found and is_in(found[key].detected_lang, key[0]))
            for key in self.complete
            if detector(key[0])
        }


@dataclass(frozen=True)
class Measure:
    """A share of answers in each language: of the base, and what each variant changes."""

    title: str
    base: Mapping[str, float]
    """Language, or AVERAGE -> share."""
    changes: Mapping[str, Mapping[str, Paired]]
    """Variant -> language, or AVERAGE -> change."""


_MEASURES: dict[str, Callable[[Side], Mapping[Key, float]]] = {
    "Complete answers": lambda side: side.complete,
    "Answers in the language that was asked for": lambda side: side.in_language,
}


def sides(runs: Sequence[Run]) -> list[Side]:
    """The runs whose last iteration is evaluated."""
    found = []
    for run in runs:
        evaluation = run.found["iterations"][str(run.config.iterations)]["evaluation"]
        if evaluation and evaluation["languages"]:
            found.append(Side(run, run.config.iterations))
    return found


def conclusions(base: Side, others: Sequence[Side]) -> list[tuple[str, Conclusion]]:
    """Name and answer of each variant: by the judge where all have used the same, else by the implicit reward."""
    found = _by_judge(base, others) or [_by_reward(base, side) for side in others]
    named = base.run.found["names"]
    return [
        (side.run.name, replace(own, findings=findings, sentence=sentence(named, side.title, base.title, findings)))
        for side, own, findings in zip(others, found, _corrected([own.findings for own in found]), strict=True)
    ]


def _by_judge(base: Side, others: Sequence[Side]) -> list[Conclusion]:
    """The answer of the judge for each variant; empty if the same judge has not judged all of them."""
    if not all(side.run.found["iterations"][str(side.iteration)]["judgements"] for side in (base, *others)):
        return []
    found = [conclusion for _, conclusion in compare([base.run, *(side.run for side in others)])]
    if not all(conclusion.findings for conclusion in found):
        return []
    return [replace(own, findings=[replace(one, p=_p(one)) for one in own.findings]) for own in found]


def _p(one: Finding) -> float:
    """The p-value of a finding alone, from its interval."""
    return two_sided_p(one.value - one.even, (one.high - one.low) / (2 * Z))


def _by_reward(base: Side, side: Side) -> Conclusion:
    before, after = base.rewards, side.rewards
    wins = {key: float(after[key] > before[key]) - float(after[key] < before[key]) for key in before if key in after}
    return Conclusion(
        "",
        "The reward is log π0 − log π_I of held-out answers to the same prompts. "
        f"{of_training(side.run.found)} than a judge",
        f"Answers with a higher reward less answers with a lower one, {base.title} → {side.title}, in percentage "
        "points",
        [_finding(lang, own) for lang, own in by_language(wins).items()],
    )


def _finding(lang: str, own: Paired) -> Finding:
    return Finding(lang, 100 * own.value, 100 * own.low, 100 * own.high, 0.0, own.p, own.count)


def by_language(differences: Mapping[Key, float]) -> dict[str, Paired]:
    """The mean of differences in each language, and on average over the languages.

    Answers to one prompt in several languages are not independent: for the average they are one case.
    """
    ordered = sorted(differences)
    found = {
        lang: mean_difference([differences[key] for key in keys]) for lang, keys in groupby(ordered, lambda key: key[0])
    }
    if len(found) > 1:
        by_prompt: dict[str, list[float]] = {}
        for lang, prompt in ordered:
            by_prompt.setdefault(prompt, []).append(differences[lang, prompt])
        found[AVERAGE] = mean_difference([sum(own) / len(own) for own in by_prompt.values()])
    return found


def _corrected(families: Sequence[Sequence[Finding]]) -> list[list[Finding]]:
    """The findings of several variants, with p-values corrected for all variants and languages together.

    The averages over languages are a family of their own.
    """
    found = [list(findings) for findings in families]
    for averages in (False, True):
        places = [
            (row, column)
            for row, own in enumerate(found)
            for column, one in enumerate(own)
            if (one.lang == AVERAGE) is averages
        ]
        corrected = holm([found[row][column].p for row, column in places])
        for (row, column), p in zip(places, corrected, strict=True):
            found[row][column] = replace(found[row][column], p=p)
    return found


def measures(base: Side, others: Sequence[Side]) -> list[Measure]:
    """What can be told of answers without a judge."""
    found = []
    for title, share in _MEASURES.items():
        own = share(base)
        changes = {
            side.run.name: by_language({key: value - own[key] for key, value in share(side).items() if key in own})
            for side in others
        }
        if own:
            found.append(Measure(title, {lang: one.value for lang, one in by_language(own).items()}, changes))
    return found


def shown(change: Paired) -> str:
    """A change in percentage points, with its interval."""
    return f"{100 * change.value:+.0f} ({interval([100 * change.low, 100 * change.high], '+.0f')})"


def _stages(found: Found) -> dict[str, StageFound[Any]]:
    """Every finished stage of a run, by name and model."""
    return {f"{name} {key}": own for key, model in models(found) for name, own in stages(model).items()}


@dataclass(frozen=True)
class Cost:
    """What a variant takes: as if it were a run of its own, and beyond the variants before it."""

    alone: float
    added: float


def costs(found: Sequence[Found]) -> tuple[str, list[Cost]]:
    """The unit, GPU-hours or CPU-hours, and what each variant takes in it."""
    kind: Literal["gpus", "cpus"] = (
        "gpus" if any(own["processors"]["gpus"] for one in found for own in _stages(one).values()) else "cpus"
    )
    seen: set[tuple[str, ...]] = set()
    costs_of = []
    for one in found:
        alone = added = 0.0
        for name, stage in _stages(one).items():
            hours = stage["processors"][kind] * stage["seconds"] / 3600
            alone += hours
            made = (name, stage["digest"], stage["finished"], str(stage["seconds"]))
            added += 0.0 if made in seen else hours
            seen.add(made)
        costs_of.append(Cost(alone, added))
    return ("GPU-hours" if kind == "gpus" else "CPU-hours"), costs_of

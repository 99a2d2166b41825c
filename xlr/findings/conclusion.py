"""The first answer of the report: did the models get better, in each language, and how certain is that?"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from xlr.dialogues.facts import RateFacts
from xlr.evaluation.facts import AnswerFacts, RateDifference, RateDifferences, Rates
from xlr.findings.found import (
    AVERAGE,
    Found,
    JudgedWinRates,
    by_language,
    by_translations,
    label,
    model_key,
    models,
    rewards,
)
from xlr.findings.numbers import interval, number
from xlr.judging.ratenotes import comparable
from xlr.maths.shares import Z, holm, share_interval, two_sided_p
from xlr.records import START
from xlr.settings.scoreconfig import IMPLICIT

_EQUAL_WIN_RATE = 50.0  # percent
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Rate:
    """A kind of win rate: its keys in WinRates, its name, and a note for the reader."""

    value: Literal["win_rate", "length_controlled_win_rate"]
    interval: Literal["win_rate_interval", "length_controlled_interval"]
    name: str
    note: str = ""


_LENGTH_CONTROLLED = Rate("length_controlled_win_rate", "length_controlled_interval", "Length-controlled win rate")
_PLAIN = Rate(
    "win_rate",
    "win_rate_interval",
    "Win rate",
    ". A language has too few judgements for length control, so these are win rates without length control",
)


@dataclass(frozen=True)
class Finding:
    """A figure of one language with its 95 % interval, in percent or percentage points.

    `even` is the value that means equally good. `p` is the probability of a value at least as far from it by chance,
    corrected for the number of languages. `count` is the number of answers, where it is known.
    """

    lang: str
    value: float
    low: float
    high: float
    even: float
    p: float
    count: int | None = None

    @property
    def shown(self) -> str:
        """The value; a difference has a sign."""
        return number(self.value, self._format)

    @property
    def interval(self) -> str:
        """The two ends of the interval."""
        return interval([self.low, self.high], self._format)

    @property
    def _format(self) -> str:
        return "+.1f" if self.even == 0 else ".1f"

    @property
    def verdict(self) -> str:
        """`better` or `worse` if chance alone rarely goes that far, and the interval excludes `even`."""
        if self.p > SIGNIFICANT or self.low <= self.even <= self.high:
            return "not clear"
        return "better" if self.value > self.even else "worse"


@dataclass(frozen=True)
class Conclusion:
    """An answer: one sentence, its evidence, and the findings that it summarises, under their heading.

    `caution` says what stands against the evidence; it comes first.
    """

    sentence: str
    evidence: str = ""
    heading: str = ""
    findings: Sequence[Finding] = ()
    caution: str = ""


def conclude(found: Found) -> Conclusion:
    """The answer of one run: by a judge that can be used, else by its ratings, else by the reward of answers."""
    iterations = {key: model for key, model in models(found) if isinstance(key, int)}
    judged = {key: figures for key, model in iterations.items() if (figures := model["judgements"])}
    caution = _judge_caution(judged[max(judged)]) if judged else ""
    if judged and not caution:
        return _by_judge(found, judged)
    rated = {
        key: stage["facts"]
        for key, model in iterations.items()
        if key > START and (stage := model["stages"].get("rate"))
    }
    if rated and not caution and (findings := list(_gains(rated[max(rated)]))):
        return _by_ratings(found, max(rated), rated[max(rated)], findings)
    answered = {
        key: model["evaluation"]["languages"]
        for key, model in iterations.items()
        if key > 0 and model["evaluation"] and model["evaluation"]["languages"]
    }
    if answered:
        return replace(_by_reward(found, max(answered), answered[max(answered)]), caution=caution)
    if caution:
        return Conclusion("There is no measure to compare the models by.", caution=caution)
    finished = [f"{stage} {key}" for key, model in iterations.items() for stage in model["stages"]]
    state = f"Finished so far: {', '.join(finished)}." if finished else "No stage is finished."
    return Conclusion(f"Nothing to compare yet. {state}")


def _by_judge(found: Found, judged: Mapping[int, JudgedWinRates]) -> Conclusion:
    """The change since the first judged iteration, or the win rate against the baseline.

    The latter if π0 is the baseline, or if there is only one judged iteration.
    """
    first, last = min(judged), max(judged)
    figures, rate = judged[last], preferred_rate((found, judged[last]))
    evidence = (
        f"Judge: {figures['judge']}, which compared the answers with those of {figures['baseline']}"
        f"{_agreement(figures)}. "
        f"Length control: {comparable(figures['length_control'])}{rate.note}"
    )
    change, counts = _change(found, first, last), judged_counts(found, figures)
    against_start = found["settings"].get("judge.baseline") == 0
    if change and not against_start:
        other = label(first)
        heading = f"{rate.name}, {other} → {label(last)}, in percentage points"
        findings = together([changed(lang, own[rate.value], counts.get(lang)) for lang, own in change])
    else:
        other = label(0) if against_start else figures["baseline"]
        heading = f"{rate.name} of {label(last)} against {other}, in %"
        rates = by_language(found, figures)
        findings = together([_against_baseline(lang, own, rate, counts.get(lang)) for lang, own in rates])
    return Conclusion(sentence(found["names"], label(last), other, findings), evidence, heading, findings)


def _change(found: Found, first: int, last: int) -> list[tuple[str, RateDifferences]]:
    """The difference of two iterations by language; empty if there is none."""
    for change in found["changes"]:
        if (model_key(change["from"]), model_key(change["to"])) == (first, last):
            return by_language(found, change["difference"])
    return []


def judged_counts(found: Found, figures: JudgedWinRates) -> dict[str, int]:
    """Number of judged answers of each language; the average has none."""
    rows: list[tuple[str, Mapping[str, Any]]] = [(lang, own) for lang, own in by_language(found, figures)]
    return {lang: own["total"] for lang, own in rows if "total" in own}


def _against_baseline(lang: str, own: Rates, rate: Rate, count: int | None) -> Finding:
    low, high = own[rate.interval]
    p = two_sided_p(own[rate.value] - _EQUAL_WIN_RATE, (high - low) / (2 * Z))
    return Finding(lang, own[rate.value], low, high, _EQUAL_WIN_RATE, p, count)


def _by_ratings(found: Found, last: int, rated: RateFacts, findings: Sequence[Finding]) -> Conclusion:
    """The judge's ratings of the last model against those of π0."""
    findings = together(findings)
    return Conclusion(
        "By the judge's ratings: " + sentence(found["names"], label(last), label(START), findings),
        f"Judge: {rated['judge']}, which rated answers to questions of several turns from 1 to 10",
        f"Ratings of {label(last)} less those of {label(START)}, in points",
        findings,
    )


def _gains(rated: RateFacts) -> Iterator[Finding]:
    for lang, own in rated["languages"].items():
        if (gain := own.get("gain")) and (error := gain["error"]) is not None:
            low, high = gain["mean"] - Z * error, gain["mean"] + Z * error
            yield Finding(lang, gain["mean"], low, high, 0.0, two_sided_p(gain["mean"], error), own["questions"])


def _by_reward(found: Found, last: int, answers: Mapping[str, AnswerFacts]) -> Conclusion:
    """Held-out answers of the last model against those of π0, by their implicit reward."""
    findings = together(list(_rewarded(found, answers)))
    return Conclusion(
        "By the model's own reward: " + sentence(found["names"], label(last), label(0), findings),
        f"The reward is log π0 − log π_I of held-out answers. {of_training(found)} than a judge",
        f"Held-out answers of {label(last)} with a higher reward than those of {label(0)}, in %",
        findings,
    )


def of_training(found: Found) -> str:
    """Why the implicit reward of held-out answers is weaker evidence, in words that go on with "than"."""
    if by_translations(found):
        return "Training follows translations instead, so it is much weaker evidence"
    if not IMPLICIT.issuperset(rewards(found)):
        return "Training follows a reward model or a judge instead, so it is much weaker evidence"
    return "Training optimises this kind of reward, so it is weaker evidence"


def _rewarded(found: Found, answers: Mapping[str, AnswerFacts]) -> Iterator[Finding]:
    for lang in found["evaluated"]:
        if own := answers.get(lang):
            share, count = own["reward_wins"], max(own["rows"], 1)
            low, high = share_interval(share, count)
            p = two_sided_p(share - 0.5, 0.5 / math.sqrt(count))
            yield Finding(lang, 100 * share, 100 * low, 100 * high, _EQUAL_WIN_RATE, p, own["rows"])


def preferred_rate(*judged: tuple[Found, JudgedWinRates]) -> Rate:
    """The length-controlled win rate, unless a language has too few judgements for it.

    The regression then returns 50 % with a standard error of 0, which says nothing.

    Args:
        judged: runs, each with the win rates of its model.
    """
    rows = [own for found, figures in judged for _, own in by_language(found, figures)]
    return _LENGTH_CONTROLLED if all(own["length_controlled_standard_error"] for own in rows) else _PLAIN


def changed(lang: str, rate: RateDifference, count: int | None) -> Finding:
    """The finding for a difference of two win rates, each of `count` answers."""
    p = two_sided_p(rate["value"], rate["standard_error"])
    return Finding(lang, rate["value"], rate["low"], rate["high"], 0.0, p, count)


def together(findings: Sequence[Finding]) -> list[Finding]:
    """The findings with their p-values corrected for being several: one a language. The average is one by itself."""
    own = [one for one in findings if one.lang != AVERAGE]
    corrected = dict(zip((one.lang for one in own), holm([one.p for one in own]), strict=True))
    return [replace(one, p=corrected.get(one.lang, one.p)) for one in findings]


def _judge_caution(figures: JudgedWinRates) -> str:
    """Why a judge cannot be used: swapping the two answers changes its verdict as often as tossing a coin would.

    Empty if it can be used, or if it judged each pair in one order only, so that this cannot be told.
    """
    bias = figures["position_bias"]
    if bias is None:
        return ""
    low, _ = share_interval(bias["agreement"] / 100, bias["instructions"])
    if low > 0.5:
        return ""
    return (
        f"The judge {figures['judge']} cannot be used: its verdicts on the same two answers in both orders agree in "
        f"{bias['agreement']:.0f} % of {bias['instructions']:,} cases, which is not clearly more than chance, 50 %"
    )


def _agreement(figures: JudgedWinRates) -> str:
    if bias := figures["position_bias"]:
        return f"; its verdicts in both orders agree in {bias['agreement']:.0f} % of {bias['instructions']:,} cases"
    return "; it judged each pair of answers in one order only"


def sentence(languages: Mapping[str, str], model: str, other: str, findings: Sequence[Finding]) -> str:
    """`π2 against π0: better in Spanish, Russian; not clear in German. On average +4.0 (95 %: +1.2 … +6.9).`

    Args:
        languages: code -> English name.
    """
    parts = []
    for verdict in ("better", "worse", "not clear"):
        names = [languages[one.lang] for one in findings if one.verdict == verdict and one.lang != AVERAGE]
        if names:
            parts.append(f"{verdict} in {', '.join(names)}")
    average = [f" On average {one.shown} (95 %: {one.interval})." for one in findings if one.lang == AVERAGE]
    return f"{model} against {other}: {'; '.join(parts)}." + "".join(average)

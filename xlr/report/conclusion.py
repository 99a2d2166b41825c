"""The report's first answer: did it get better, in each language, and how sure is that."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xlr.report.tables import AVERAGE, Found, interval, label, number, of_languages, share_interval

_HALF = 50.0  # a win rate at which two models are as good, in percent


@dataclass(frozen=True)
class Rate:
    """Which win rate answers: where figures have it and its interval, its name, and why it is not the better one."""

    value: str
    interval: str
    name: str
    note: str = ""


_LENGTH_CONTROLLED = Rate("length_controlled_win_rate", "length_controlled_interval", "Length-controlled win rate")
_PLAIN = Rate(
    "win_rate",
    "win_rate_interval",
    "Win rate",
    "; the regression for length control found too few judgements in a language to say anything: these are plain win "
    "rates",
)


@dataclass(frozen=True)
class Finding:
    """A figure of one language with its 95 % interval, in percent or points; `even` says neither better nor worse."""

    lang: str
    value: float
    low: float
    high: float
    even: float

    @property
    def shown(self) -> str:
        """The value, with a sign where it is a change."""
        return number(self.value, "+.1f" if self.even == 0 else ".1f")

    @property
    def interval(self) -> str:
        """Its two ends."""
        return interval(self.low, self.high, "+.1f" if self.even == 0 else ".1f")

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.low > self.even:
            return "better"
        return "worse" if self.high < self.even else "not clear"


@dataclass(frozen=True)
class Conclusion:
    """The answer in a sentence, what it rests on, and the findings it sums up."""

    sentence: str
    basis: str
    figure: str
    findings: Sequence[Finding]


def conclude(found: Found) -> Conclusion:
    """From the best evidence there is: a judge's comparison with π0, with other answers, or the implicit reward."""
    iterations = {model: entry for model, entry in found["iterations"].items() if model.isdigit()}
    judged = [model for model, entry in iterations.items() if entry["judgements"]]
    answered = [model for model, entry in iterations.items() if model != "0" and _answers(entry)]
    if judged:
        return _by_judge(found, judged)
    if answered:
        return _by_reward(found, answered[-1], _answers(iterations[answered[-1]]))
    done = [f"{name} {model}" for model, entry in iterations.items() for name in entry["stages"]]
    state = f"Finished so far: {', '.join(done)}." if done else "No stage is finished."
    return Conclusion(f"Nothing to compare yet. {state}", "", "", [])


def _answers(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Held-out answers' figures by language."""
    return (entry["evaluation"] or {}).get("languages", {})


def _by_judge(found: Found, judged: Sequence[str]) -> Conclusion:
    """The change since the first iteration that was judged, unless π0 is itself what answers are compared with."""
    first, last = judged[0], judged[-1]
    figures = found["iterations"][last]["judgements"]
    basis = (
        f"Judge: {figures['judge']}, which compared the answers with those of {figures['baseline']}; "
        f"length control: {figures['length_control']}"
    )
    change = next((one for one in found["changes"] if (one["from"], one["to"]) == (first, last)), None)
    against_start = found["settings"].get("judge.baseline") == 0
    rate = telling_rate((found, figures))
    basis += rate.note
    if change and not against_start:
        findings = [changed(lang, own[rate.value]) for lang, own in of_languages(found, change["difference"])]
        other, figure = label(first), f"{rate.name}, {label(first)} → {label(last)}, in points"
    else:
        findings = [
            Finding(lang, own[rate.value], own[rate.interval][0], own[rate.interval][1], _HALF)
            for lang, own in of_languages(found, figures)
        ]
        other = label("0") if against_start else figures["baseline"]
        figure = f"{rate.name} of {label(last)} against {other}, in %"
    return Conclusion(sentence(found["names"], label(last), other, findings), basis, figure, findings)


def _by_reward(found: Found, last: str, by_language: Mapping[str, Any]) -> Conclusion:
    findings = list(_rewarded(found, by_language))
    return Conclusion(
        "By the implicit reward, with no judge yet, " + sentence(found["names"], label(last), label("0"), findings),
        "No judge has compared the answers; this is the implicit reward log π0 − log π_I of held-out answers, "
        "which the training itself pursues",
        f"Held-out answers of {label(last)} with a higher reward than those of {label('0')}, in %",
        findings,
    )


def telling_rate(*judged: tuple[Found, Mapping[str, Any]]) -> Rate:
    """The length-controlled one, unless it says nothing: of few judgements its regression makes 50 % without an error.

    Args:
        judged: runs, each with the judgements' figures of its model.
    """
    rows = [own for found, figures in judged for _, own in of_languages(found, figures)]
    return _LENGTH_CONTROLLED if all(own["length_controlled_standard_error"] for own in rows) else _PLAIN


def changed(lang: str, rate: Mapping[str, float]) -> Finding:
    """A difference of two win rates, as `winrates.changes` gives it."""
    return Finding(lang, rate["value"], rate["low"], rate["high"], 0.0)


def _rewarded(found: Found, by_language: Mapping[str, Any]) -> Iterator[Finding]:
    for lang in found["evaluated"]:
        if own := by_language.get(lang):
            low, high = share_interval(own["reward_wins"], max(own["rows"], 1))
            yield Finding(lang, 100 * own["reward_wins"], 100 * low, 100 * high, _HALF)


def sentence(languages: Mapping[str, str], model: str, other: str, findings: Sequence[Finding]) -> str:
    """`π2 against π0: better in Spanish, Russian; not clear in German. On average +4.0 (95 %: +1.2 … +6.9).`"""
    parts = []
    for verdict in ("better", "worse", "not clear"):
        names = [languages[one.lang] for one in findings if one.verdict == verdict and one.lang != AVERAGE]
        if names:
            parts.append(f"{verdict} in {', '.join(names)}")
    average = [f" On average {one.shown} (95 %: {one.interval})." for one in findings if one.lang == AVERAGE]
    return f"{model} against {other}: {'; '.join(parts)}." + "".join(average)

"""What can be measured without a judge, by language and model: complete answers, right language, reward accuracy."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from xlr.evaluation.facts import AnswerFacts
from xlr.findings.found import Found, label, models, preferences_of, rewards
from xlr.languages import ENGLISH
from xlr.maths.shares import Z, difference_interval, share_interval, two_sided_p
from xlr.records import START
from xlr.settings.scoreconfig import IMPLICIT, Reward

# Titles of measures.
REWARD_ACCURACY = "The reward's accuracy on held-out preferences"
RIGHT_LANGUAGE, RIGHT_ANSWERS, ENGLISH_PREFERENCES = "Right language", "Right answers", "English preferences"


@dataclass(frozen=True)
class Share:
    """A share that was observed in `count` cases, from 0 to 1."""

    value: float
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval."""
        return share_interval(self.value, max(self.count, 1))


@dataclass(frozen=True)
class Measure:
    """A share of each language, from model to model."""

    title: str
    note: str
    by_language: Mapping[str, Mapping[str, Share]]
    """Language -> model -> share."""


@dataclass(frozen=True)
class Change:
    """A measure of one language from the first to the last model, with the 95 % interval of the difference."""

    lang: str
    before: Share
    after: Share

    @property
    def interval(self) -> tuple[float, float]:
        """That of `after` less `before`."""
        return difference_interval(
            self.before.value, max(self.before.count, 1), self.after.value, max(self.after.count, 1)
        )

    @property
    def p(self) -> float:
        """The probability of a change at least as large by chance, from the interval."""
        low, high = self.interval
        return two_sided_p(self.after.value - self.before.value, (high - low) / (2 * Z))

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0, no change."""
        low, high = self.interval
        return not low <= 0 <= high


def of_answers(found: Found) -> list[Measure]:
    """The measures of held-out answers, and what the models still know of English preferences."""
    tokens = found["settings"]["evaluate.max_new_tokens"]
    measures = [
        Measure(
            "Complete answers",
            f"Share of held-out answers that end by themselves within {tokens:,} tokens",
            _answers(found, lambda own: own["complete"]),
        ),
        Measure(
            RIGHT_LANGUAGE,
            "Share of held-out answers in the language that was asked for" + _undetected(found),
            _answers(found, lambda own: own["in_language"]),
        ),
        Measure(
            RIGHT_ANSWERS,
            "Share of questions with a known answer, such as a number, that are answered rightly. A fall is what "
            "alignment cost",
            _right_answers(found),
        ),
        Measure(
            ENGLISH_PREFERENCES,
            "Share of held-out English pairs in which the model's reward log π − log π_I prefers the better answer. A "
            "fall means that alignment in English is being forgotten",
            {ENGLISH: own} if (own := dict(_accuracies(found, ENGLISH, "multilingual"))) else {},
        ),
    ]
    return [measure for measure in measures if measure.by_language]


def _undetected(found: Found) -> str:
    """The rest of the note: which languages the share leaves out."""
    lacking = {
        found["names"][lang]
        for _, model in models(found)
        if model["evaluation"]
        for lang, own in model["evaluation"]["languages"].items()
        if own["in_language"] is None
    }
    return f", without {', '.join(sorted(lacking))}, which no installed detector knows" if lacking else ""


def reward_accuracy(found: Found) -> dict[str, Mapping[str, Share]]:
    """How often the reward of π0 prefers the better answer: language -> kind of instruction -> share."""
    start = found["iterations"].get(str(START))
    preferences = preferences_of(start) if start else {}
    return {
        lang: {mode: Share(own["accuracy"], own["pairs"]) for mode, own in preferences[lang].items()}
        for lang in found["names"]  # in the order of the run's languages
        if lang in preferences
    }


def reward_by_model(found: Found) -> Measure:
    """How often the reward of each model is right in each language but English, asked as the run scores."""
    asked: Reward = next((mode for mode in rewards(found) if mode in IMPLICIT), "multilingual")  # ratings stay the same
    by_language = {
        lang: own
        for lang in found["names"]
        if lang != ENGLISH
        if (own := dict(_accuracies(found, lang, asked))) or (own := dict(_accuracies(found, lang, "multilingual")))
    }
    return Measure(
        REWARD_ACCURACY, "Share of held-out pairs in which the reward prefers the better answer", by_language
    )


def changes(measure: Measure) -> list[Change]:
    """The change of each language from its first to its last model; none with a single model."""
    found = []
    for lang, by_model in measure.by_language.items():
        first, *others = by_model.values()
        if others:
            found.append(Change(lang, first, others[-1]))
    return found


def _answers(found: Found, share: Callable[[AnswerFacts], float | None]) -> dict[str, dict[str, Share]]:
    by_language: dict[str, dict[str, Share]] = {}
    for key, model in models(found):
        if isinstance(key, int) and (evaluation := model["evaluation"]):
            for lang, own in evaluation["languages"].items():
                if (value := share(own)) is not None:
                    by_language.setdefault(lang, {})[label(key)] = Share(value, own["rows"])
    return by_language


def _right_answers(found: Found) -> dict[str, dict[str, Share]]:
    by_language: dict[str, dict[str, Share]] = {}
    for key, model in models(found):
        if isinstance(key, int) and "check" in model["stages"]:
            for lang, own in model["stages"]["check"]["facts"].items():
                by_language.setdefault(lang, {})[label(key)] = Share(own["right"], own["rows"])
    return by_language


def _accuracies(found: Found, lang: str, mode: Reward) -> Iterator[tuple[str, Share]]:
    for key, model in models(found):
        if own := preferences_of(model).get(lang, {}).get(mode):
            yield label(key), Share(own["accuracy"], own["pairs"])

"""Types of report.json: what was collected from a run.

`docs/report.schema.json` is made of them and of the facts that each package describes; see `xlr.findings.schema`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast, overload

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from xlr.benchmarking.facts import BenchmarkFacts
from xlr.certificate.facts import TokenMap, Verdict
from xlr.dialogues.facts import ConverseFacts, RateFacts
from xlr.evaluation.facts import (
    CheckFacts,
    EvaluationFacts,
    JudgeAgreement,
    JudgeFacts,
    RateDifferences,
    Rates,
    WinRateDifference,
    WinRates,
)
from xlr.labelled.facts import PreferenceFacts
from xlr.records import ModelKey
from xlr.rewarding.facts import PairStageFacts, ScoreFacts
from xlr.run.directory import RunDir
from xlr.sampling.facts import GenerateFacts
from xlr.settings.config import Config
from xlr.settings.scoreconfig import Reward
from xlr.training.facts import ReferenceFacts, TrainingFacts

Facts = TypeVar("Facts")

AVERAGE = "average"  # in place of a language


class Processors(TypedDict):
    """Peak number of processors that a stage used."""

    cpus: float
    gpus: float


class Planned(TypedDict):
    """What the run's last `xlr plan` said of a stage."""

    seconds: float
    memory: float
    """Peak memory of a process, in bytes; 0 if it takes next to none."""


class StageFound(TypedDict, Generic[Facts]):
    """One finished stage, from its manifest."""

    rows: int
    """Number of rows written."""
    seconds: float
    """Run time of the process that finished the stage, in seconds."""
    processors: Processors
    memory: int
    """Peak memory of a process that computed, in bytes; 0 where it is not known."""
    planned: Planned | None
    """Null without a plan."""
    finished: str
    """When it finished: ISO 8601, UTC."""
    digest: str
    """Digest of the files written."""
    facts: Facts
    """What the stage recorded."""
    tokens: dict[str, int]
    """What was done with tokens -> number of tokens, e.g. {"sampled": 1234}."""


class StagesFound(TypedDict, total=False):
    """The finished stages of one model, by name."""

    align: StageFound[TrainingFacts]
    generate: StageFound[GenerateFacts]
    translate: StageFound[GenerateFacts]
    score: StageFound[ScoreFacts]
    pair: StageFound[PairStageFacts]
    reference: StageFound[ReferenceFacts]
    train: StageFound[TrainingFacts]
    evaluate: StageFound[EvaluationFacts]
    check: StageFound[CheckFacts]
    converse: StageFound[ConverseFacts]
    rate: StageFound[RateFacts]
    benchmark: StageFound[BenchmarkFacts]
    judge: StageFound[JudgeFacts]


class JudgedWinRates(WinRates):
    """The win rates of a model, and who judged."""

    judge: str
    """Name of the judge."""


class OtherJudgement(JudgedWinRates):
    """The win rates that another judge than the run's gave the same answers."""

    agreement: JudgeAgreement | None
    """How often it prefers the same answers as the run's judge; null if they judged other answers."""


class ModelFound(TypedDict):
    """One model of the run: that of an iteration, or one of evaluate.models."""

    evaluation: EvaluationFacts | None
    """Null if the model is not evaluated yet."""
    judgements: JudgedWinRates | None
    """By the run's judge; null if the model is not judged yet."""
    other_judgements: list[OtherJudgement]
    """By judges that the run had before, of the same answers."""
    stages: StagesFound


# `from` is a keyword of Python, so this type cannot be a class.
Change = TypedDict("Change", {"from": str, "to": str, "digests": list[str], "difference": WinRateDifference})


class Sign(TypedDict):
    """Something that was measured and speaks against another iteration, or for it."""

    text: str
    """One or two sentences."""
    against: bool
    """Whether it speaks against it."""


class Advice(TypedDict):
    """Whether another iteration is worth its cost; see `stopping`."""

    iteration: int
    """Number of that iteration."""
    verdict: Literal["yes", "no", "not clear"]
    signs: list[Sign]
    """What speaks for it or against it."""
    hours: float
    """What the last iteration took; the next may take as much."""
    unit: str
    """What hours are counted in: GPU-hours or CPU-hours."""


class Certified(TypedDict):
    """What the last certificate says of a language. Its own file in the folder of the iteration has the figures."""

    iteration: int
    """The iteration that was certified."""
    verdict: Verdict
    tokens: list[TokenMap]
    """A chosen and a rejected response, token by token."""


@with_config(ConfigDict(use_attribute_docstrings=True, extra="forbid"))
class Found(TypedDict):
    """report.json of xlr: what the finished stages of a run left."""

    name: str
    """Name of the run."""
    languages: list[str]
    """Languages that are trained in."""
    evaluated: list[str]
    """Languages of the held-out answers."""
    names: dict[str, str]
    """Language -> its English name."""
    settings: dict[str, Any]
    """The settings that affect the results, e.g. {"train.beta": 0.1}."""
    versions: dict[str, list[str]]
    """Library -> its versions, in the order of the stages that used them."""
    finished: str
    """When the last stage finished: ISO 8601, UTC; empty if no stage is finished."""
    iterations: dict[str, ModelFound]
    """Number of the iteration, or name of a model of evaluate.models -> what was found of it."""
    changes: list[Change]
    """Paired differences of win rates between iterations, with the digests of the judgements they compare."""
    certificates: dict[str, Certified]
    """Language -> whether its reward may be trusted, where `xlr certify` was run."""
    advice: Advice | None
    """Whether another iteration is worth its cost; null before the first is evaluated."""


@dataclass(frozen=True)
class Run:
    """A run as the report reads it."""

    config: Config
    directory: RunDir
    found: Found

    @property
    def name(self) -> str:
        """How the report calls the run."""
        return self.found["name"]


def models(found: Found) -> Iterator[tuple[ModelKey, ModelFound]]:
    """All models of a run with what was found of them."""
    for key, model in found["iterations"].items():
        yield model_key(key), model


def model_key(text: str) -> ModelKey:
    """A model's key from its text in report.json. The names of models begin with a letter."""
    return int(text) if text.isdecimal() else text


def by_judge(found: Found) -> Iterator[tuple[ModelKey, str, JudgedWinRates]]:
    """What each judge found of each model, with the judge's name if there are several; the run's judge comes first."""
    judged = [
        (key, own)
        for key, model in models(found)
        for own in (*filter(None, [model["judgements"]]), *model["other_judgements"])
    ]
    several = len({own["judge"] for _, own in judged}) > 1
    for key, own in judged:
        yield key, own["judge"] if several else "", own


def preferences_of(model: ModelFound) -> Mapping[str, Mapping[Reward, PreferenceFacts]]:
    """What was found of held-out preferences, by language and kind of instruction; empty if there is nothing."""
    evaluation = model["evaluation"]
    return evaluation.get("preferences", {}) if evaluation else {}


def rewards(found: Found) -> Mapping[Reward, float]:
    """Each reward that the run scores with, and its weight."""
    own = found["settings"]["score.reward"]
    return own if isinstance(own, dict) else {own: 1.0}


def by_translations(found: Found) -> bool:
    """Whether pairs are made by translations, so that nothing is scored."""
    return found["settings"].get("pair.by") == "translations"


def label(model: ModelKey) -> str:
    """How the report calls a model: `π1` for the model of iteration 1; other models by their name."""
    return f"π{model}" if isinstance(model, int) else model


def stages(model: ModelFound) -> Mapping[str, StageFound[Any]]:
    """The finished stages of a model, where their names do not matter."""
    return cast("Mapping[str, StageFound[Any]]", model["stages"])


@overload
def by_language(found: Found, figures: WinRates) -> list[tuple[str, Rates]]: ...


@overload
def by_language(found: Found, figures: WinRateDifference) -> list[tuple[str, RateDifferences]]: ...


def by_language(found: Found, figures: Any) -> Any:
    """Win rates, or their differences, by language and then on average; a single language has no average."""
    if "languages" not in figures:
        return [(found["evaluated"][0], figures)]
    own = figures["languages"]
    return [*((lang, own[lang]) for lang in found["evaluated"] if lang in own), (AVERAGE, figures[AVERAGE])]

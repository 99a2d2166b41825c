"""Types of the JSON that evaluation writes: eval.json, annotations, winrates.json, and `xlr winrate --json`.

Rates are in percent, differences of rates in percentage points, intervals are 95 % bootstrap intervals.
"""

from typing import Literal, TypeAlias, final

from typing_extensions import NotRequired, TypedDict

from xlr.labelled.facts import PreferenceFacts
from xlr.records import ModelKey
from xlr.rewarding.facts import RewardFacts
from xlr.settings.scoreconfig import Reward
from xlr.work.dropped import DroppedCounts


class AnswerFacts(RewardFacts):
    """The answers of a model in one language, one to each held-out prompt. The reward is log pi^0 - log pi_I."""

    complete: float
    """Share of answers that ended by themselves, from 0 to 1."""
    finish_reasons: dict[str, int]
    """`stop` or `length` -> number of answers that ended by themselves or were cut off."""
    empty: float
    """Share of answers without text, from 0 to 1."""
    reward_gain: float
    """Mean reward less that of the answers of pi^0, in nats."""
    reward_wins: float
    """Share of answers with a higher reward than the answer of pi^0, from 0 to 1; a tie counts one half."""


class EvaluationFacts(TypedDict):
    """Facts of evaluate, which are also eval.json."""

    iteration: ModelKey
    """Number of the iteration, or name of a model of evaluate.models."""
    languages: dict[str, AnswerFacts]
    """Language -> its answers; empty without evaluate.prompts."""
    dropped: DroppedCounts
    """Answers that were not scored."""
    preferences: NotRequired[dict[str, dict[Reward, PreferenceFacts]]]
    """Language -> kind of instruction, as in score.reward -> held-out preferences. English has only `multilingual`,
    since all kinds ask the same there. Only for iterations, and only with evaluate.preferences."""


class CheckedFacts(TypedDict):
    """The answers of a model in one language to questions that have right answers."""

    rows: int
    """Number of questions."""
    right: float
    """Share of right answers, from 0 to 1."""


# Facts of check, by language.
CheckFacts: TypeAlias = dict[str, CheckedFacts]


class AnnotationRow(TypedDict):
    """One row of judgements/annotations/{lang}.json, in AlpacaEval's format."""

    id: str
    lang: str
    instruction: str
    output_1: str
    """Answer of the baseline."""
    generator_1: str
    """Name of the baseline."""
    output_2: str
    """Answer of the model."""
    generator_2: str
    """Name of the model."""
    annotator: str
    """Name of the judge."""
    preference: float | None
    """From 1 (output_1 is better) to 2 (output_2 is better); null if judging failed."""
    preferences: list[float | None]
    """The preference in each order in which the judge was asked; empty if the judge was not needed."""


class JudgeFacts(TypedDict):
    """Facts of judge."""

    judge: str
    """Name of the judge."""
    baseline: str
    """Name of the baseline."""
    questions: int
    """Number of questions; both orders of a comparison are two. As the numbers below, without languages that were taken
    over from another run."""
    asked: int
    """Number of questions that were asked and not found in the cache."""
    undecided: int
    """Number of questions without a verdict."""
    without_judge: int
    """Number of comparisons that need no judge: equal or empty answers."""
    prompt_tokens: int
    """Tokens of the questions."""
    completion_tokens: int
    """Tokens of the judge's answers."""
    cost: float | None
    """Price of these tokens; null without judge.input_price and judge.output_price."""
    win_rate: float
    """Win rate of all comparisons."""
    length_controlled_win_rate: float
    """Length-controlled win rate of all comparisons."""


class Rates(TypedDict):
    """Win rates of a model against a baseline."""

    win_rate: float
    """Win rate."""
    win_rate_interval: list[float]
    """Its interval: low, high."""
    length_controlled_win_rate: float
    """Length-controlled win rate."""
    length_controlled_standard_error: float
    """Its bootstrap standard error."""
    length_controlled_interval: list[float]
    """Its interval: low, high."""


class CountedRates(Rates):
    """Win rates of a set of comparisons, with their counts."""

    standard_error: float
    """Standard error of the win rate, as AlpacaEval computes it."""
    wins: int
    """Number of comparisons that the model won."""
    ties: int
    """Number of ties."""
    losses: int
    """Number of comparisons that the baseline won."""
    failed: int
    """Number of comparisons without a verdict."""
    total: int
    """Number of comparisons with a verdict."""
    tie_rate: float
    """Share of ties."""


class PositionBias(TypedDict):
    """How the order of two answers influences the judge."""

    instructions: int
    """Number of instructions judged in both orders."""
    second_place_win_rate: float
    """How often the answer shown second wins; 50 without bias."""
    agreement: float
    """How often both orders give the same verdict."""


class WinRates(CountedRates):
    """Win rates of all comparisons of a file or folder of annotations; also winrates.json."""

    annotations: str
    """Path of the annotations."""
    model: str
    """Name of the model."""
    baseline: str
    """Name of the baseline."""
    length_control: Literal["length_controlled_minimal", "length_controlled_v1"]
    """AlpacaEval's name of the regression."""
    languages: NotRequired[dict[str, CountedRates]]
    """Language -> its win rates; missing if there is only one language."""
    average: NotRequired[Rates]
    """Mean over languages; missing if there is only one language."""
    position_bias: PositionBias | None
    """Null if no instruction was judged in both orders."""


class RateDifference(TypedDict):
    """The difference of two rates of the same instructions."""

    value: float
    """The difference."""
    standard_error: float
    """Its bootstrap standard error."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end of its interval."""


class RateDifferences(TypedDict):
    """Differences of both win rates."""

    win_rate: RateDifference
    """Difference of the win rates."""
    length_controlled_win_rate: RateDifference
    """Difference of the length-controlled win rates."""


class WinRateDifference(RateDifferences):
    """Win rates of a second model less those of a first: paired differences over all comparisons."""

    languages: NotRequired[dict[str, RateDifferences]]
    """Language -> its differences; missing if there is only one language."""
    average: NotRequired[RateDifferences]
    """Mean over languages; missing if there is only one language."""


class JudgeAgreement(TypedDict):
    """Two judges of the same answers of the same two models, such as a model and a person."""

    judgements: int
    """Number of instructions on which both prefer an answer."""
    agreement: float
    """Percentage of these on which they prefer the same one."""
    interval: list[float]
    """Its interval."""


@final
class WinRateComparison(TypedDict):
    """The JSON of `xlr winrate` for two files."""

    first: WinRates
    """Win rates of the first file."""
    second: WinRates
    """Win rates of the second file."""
    difference: WinRateDifference
    """The second less the first."""
    agreement: JudgeAgreement | None
    """How often the judges of the two files prefer the same answer; null if the files are of other answers."""

"""Types of the JSON of `xlr certify`, and of the manifest of what it computes."""

from typing import Literal, TypeAlias

from typing_extensions import TypedDict

from xlr.labelled.facts import PreferenceFacts
from xlr.rewarding.facts import RewardFacts
from xlr.settings.config import Config
from xlr.settings.scoreconfig import Reward
from xlr.work.dropped import DroppedCounts


def prefix(config: Config) -> str:
    """What the names of a run's certificates begin with; a number follows.

    Args:
        config: the configuration of the certified iteration.
    """
    return f"certify-{'-'.join(config.score.weights)}-"


class Remark(TypedDict):
    """One sentence of a verdict."""

    text: str
    """The sentence."""
    warning: bool
    """True if it warns of a problem."""


class ModeFacts(TypedDict):
    """One reward mode in one language."""

    reward_deviation: float | None
    """Standard deviation of the reward within a prompt, averaged over prompts, in nats."""
    length_correlation: float | None
    """Spearman's correlation of reward and length within a prompt, averaged over prompts."""
    length_correlation_deviation: float | None
    """Standard deviation of that correlation if reward and length are independent."""
    candidates: RewardFacts
    """All candidates."""
    chosen: RewardFacts
    """The candidate chosen for each prompt."""
    rejected: RewardFacts
    """The candidate rejected for each prompt."""
    not_english: int
    """Number of translations that are not in English; 0 in the other modes."""
    alpha: float
    """Length penalty that makes chosen and rejected equally long, in nats a character."""


class Agreement(TypedDict):
    """How two reward modes agree in one language. A figure is null if no prompt defines it."""

    modes: list[Reward]
    """The two modes."""
    candidate_pairs: int
    """Number of pairs of candidates of the same prompt that both modes scored."""
    same_order: float | None
    """Share of these pairs that both modes order alike, from 0 to 1."""
    chance_deviation: float | None
    """Standard deviation of that share if the two orders are independent."""
    spearman: float | None
    """Spearman's rank correlation, averaged over prompts."""
    kendall: float | None
    """Kendall's tau-b, averaged over prompts."""
    prompts: int
    """Number of prompts that have a pair under both modes."""
    same_best: int
    """Number of these prompts for which both modes choose the same text."""
    same_worst: int
    """Number of these prompts for which both modes reject the same text."""


class RightWrong(TypedDict):
    """How often the reward of right answers is higher than that of wrong answers to the same question."""

    answers: int
    """Number of sampled answers."""
    questions: int
    """Number of questions with a right and a wrong answer."""
    right: float
    """Share of right answers among all sampled ones, from 0 to 1."""
    accuracy: float | None
    """Share of pairs of a right and a wrong answer whose right one has the higher reward, averaged over questions; null
    if there is no such question."""
    interval: tuple[float, float] | None
    """Its 95 % interval, which counts each question as one case; null if there is none."""


class Precision(TypedDict):
    """What the precision of scoring changes, for some of the responses."""

    precisions: tuple[str, str]
    """The run's own and the other: float32 or bfloat16."""
    responses: int
    """Number of responses scored in both."""
    noise: float
    """Standard deviation of the difference of a response's two rewards, in nats."""
    prompts: int
    """Number of prompts with a pair in both."""
    changed: int
    """Number of these prompts whose chosen or rejected response changes."""


class TokenMap(TypedDict):
    """Where in a response its reward comes from."""

    id: str
    """Id of the prompt."""
    sample: int
    """Number of the sample."""
    chosen: bool
    """True for the prompt's chosen response, false for the rejected one."""
    pieces: list[tuple[str, float]]
    """Each token's text, or that of several that make one character, with its log-ratio in nats. The last is the
    terminator."""


class ShownCandidate(TypedDict):
    """One sampled response."""

    sample: int
    """Number of the sample."""
    response: str
    """The response."""
    translation: str | None
    """Its English translation; null if it was not scored in translate mode."""
    chars: int
    """Length in characters."""
    tokens: int
    """Length in tokens."""
    language: str
    """Detected language; empty if unknown."""
    flaws: list[str]
    """Its flaws."""
    rewards: dict[Reward, float]
    """Reward mode -> reward in nats; only modes that scored the response."""
    chosen_by: list[Reward]
    """Modes that choose the response."""
    rejected_by: list[Reward]
    """Modes that reject the response."""


class ShownPrompt(TypedDict):
    """A prompt with what was sampled for it."""

    id: str
    """Id of the prompt."""
    instruction: str
    """The instruction."""
    english: str
    """The same instruction in English."""
    candidates: list[ShownCandidate]
    """The responses sampled for it."""


Decision: TypeAlias = Literal["go", "go with", "do not", "not clear"]
"""`go with`: with the settings that the verdict names."""


class Verdict(TypedDict):
    """Whether the reward of the run's own mode should be trained on in a language, and why."""

    decision: Decision
    """What to do."""
    settings: list[str]
    """Settings to change, as KEY=VALUE; only with the decision `go with`."""
    remarks: list[Remark]
    """The reasons, the decisive ones first."""


class CertifiedLanguage(TypedDict):
    """One language."""

    name: str
    """Its English name."""
    verdict: Verdict
    """What to do."""
    modes: dict[Reward, ModeFacts]
    """Reward mode -> its figures."""
    agreement: list[Agreement]
    """One entry for every two modes."""
    preferences: dict[Reward, PreferenceFacts]
    """Reward mode -> held-out preferences, if evaluate.preferences has some in the language."""
    checked: dict[Reward, RightWrong]
    """Reward mode -> questions with known answers, if evaluate.checked has some in the language."""
    precision: Precision | None
    """What the precision changes; null if no response was scored in both."""
    tokens: list[TokenMap]
    """The chosen and the rejected response to one prompt, token by token."""
    prompts: list[ShownPrompt]
    """The prompts."""


class Cost(TypedDict):
    """What the certificate took beside the annotation of the iteration."""

    seconds: float
    """Time that it took, in seconds."""
    sampled: float
    """Number of responses sampled here, divided by the number that the iteration samples in these languages."""
    scored: float
    """Number of responses scored here, once for each mode, divided by the number that the iteration samples."""
    labelled: int
    """Number of answers scored beside, of preferences and questions, counted once for each mode."""


class Certificate(TypedDict):
    """The JSON of `xlr certify`."""

    iteration: int
    """The iteration."""
    policy: str
    """Model of the reward's numerator."""
    reference: str
    """Model of the reward's denominator."""
    formula: str
    """The run's reward as a formula."""
    reward: Reward
    """The reward that the verdicts are on: the first in score.reward."""
    cost: Cost
    """What it took."""
    languages: dict[str, CertifiedLanguage]
    """Language -> what was found."""


class CertifyFacts(TypedDict):
    """Facts of the scores that `xlr certify` makes."""

    prompts: list[str]
    """Ids of the prompts."""
    dropped: dict[Reward, DroppedCounts]
    """Reward mode -> responses that were not scored."""
    preferences: dict[str, dict[Reward, PreferenceFacts]]
    """Language -> reward mode -> held-out preferences."""
    checked: dict[str, dict[Reward, RightWrong]]
    """Language -> reward mode -> questions with known answers."""
    precisions: tuple[str, str]
    """The run's own precision, and the other."""
    tokens: dict[str, list[TokenMap]]
    """Language -> responses token by token."""
    cost: Cost
    """What it took."""

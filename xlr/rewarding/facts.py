"""Types of the JSON that rewarding writes.

They are the facts in the manifests of generate, score and pair, and the output of `xlr inspect --json`.
"""

from typing import Literal, TypeAlias

from typing_extensions import NotRequired, TypedDict

from xlr.run.dropped import DroppedCounts
from xlr.settings.config import Reward


class ResponseFacts(TypedDict):
    """The sampled responses of one language."""

    rows: int
    """Number of responses."""
    tokens: int
    """Number of sampled tokens."""
    empty: int
    """Number of responses without text."""
    finish_stop: NotRequired[int]
    """Number of responses that ended by themselves; missing if there are none."""
    finish_length: NotRequired[int]
    """Number of responses that were cut off at generate.max_new_tokens; missing if there are none."""


# Facts of generate, by language.
GenerateFacts: TypeAlias = dict[str, ResponseFacts]


class RewardFacts(TypedDict):
    """The scored responses of one language."""

    rows: int
    """Number of responses."""
    tokens: int
    """Number of scored tokens."""
    reward_mean: float
    """Mean implicit reward, in nats."""
    reward_std: float
    """Standard deviation of the implicit reward, in nats."""
    chars_mean: float
    """Mean length in characters."""
    in_language: float | None
    """Share of responses in the language of the prompt, from 0 to 1; null if no detector knows the language."""
    flaws: dict[str, int]
    """Flaw -> number of responses that have it."""


class ScoredProbe(TypedDict):
    """A scored sequence as token ids, with which the trainer compares its own log-probability."""

    prompt: list[int]
    response: list[int]
    logp_policy: float
    """In nats."""


class ScoreFacts(TypedDict):
    """Facts of score."""

    formula: str
    """The implicit reward as a formula."""
    reward: Reward
    """The reward mode, score.reward."""
    dropped: DroppedCounts
    """Responses that were not scored."""
    languages: dict[str, RewardFacts]
    """Language -> its scored responses."""


class PairFacts(TypedDict):
    """The preference pairs of one language."""

    pairs: int
    """Number of pairs."""
    alpha: float
    """Length penalty, in nats a character."""
    length_gap: float | None
    """|mean length of chosen - mean length of rejected| at alpha, in characters; null if no prompt has a pair."""
    chosen_chars: float
    """Mean length of the chosen responses, in characters."""
    rejected_chars: float
    """Mean length of the rejected responses, in characters."""
    filtered: dict[str, int]
    """Flaw -> number of responses that pair.filters removed for it."""
    dropped: dict[str, int]
    """Reason -> number of prompts without a pair."""


# Facts of pair, by language; a language without scores is missing.
PairStageFacts: TypeAlias = dict[str, PairFacts]


class InspectFacts(TypedDict):
    """Facts of the scores that `xlr inspect` makes."""

    prompts: list[str]
    """Ids of the inspected prompts."""
    dropped: dict[Reward, DroppedCounts]
    """Reward mode -> responses that were not scored."""


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
    """Length penalty, in nats a character."""
    alpha_of: Literal["pairs", "candidates"]
    """Where alpha was fitted: on the pairs of the run, or on the inspected candidates."""


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


class InspectedCandidate(TypedDict):
    """One sampled response to an inspected prompt."""

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


class InspectedPrompt(TypedDict):
    """One inspected prompt."""

    id: str
    """Id of the prompt."""
    instruction: str
    """The instruction."""
    english: str
    """The same instruction in English."""
    candidates: list[InspectedCandidate]
    """The responses sampled for it."""


class InspectedLanguage(TypedDict):
    """One inspected language."""

    name: str
    """Its English name."""
    verdict: list[Remark]
    """What the figures say."""
    modes: dict[Reward, ModeFacts]
    """Reward mode -> its figures."""
    agreement: list[Agreement]
    """One entry for every two modes."""
    prompts: list[InspectedPrompt]
    """The inspected prompts."""


class Inspection(TypedDict):
    """The JSON of `xlr inspect`."""

    iteration: int
    """The iteration."""
    policy: str
    """Model of the reward's numerator."""
    reference: str
    """Model of the reward's denominator."""
    formula: str
    """The implicit reward as a formula."""
    reward: Reward
    """The reward mode of the run, score.reward."""
    languages: dict[str, InspectedLanguage]
    """Language -> what was found."""

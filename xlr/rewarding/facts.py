"""Types of the JSON that rewarding writes.

They are the facts in the manifests of score and pair.
"""

from typing import TypeAlias

from typing_extensions import NotRequired, TypedDict

from xlr.settings.scoreconfig import Reward
from xlr.work.dropped import DroppedCounts


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
    failed_translations: NotRequired[int]
    """Number of responses whose translation failed (`score.translation: marked`); missing if there are none."""


class ScoredProbe(TypedDict):
    """A scored sequence as token ids, with which the trainer compares its own log-probability."""

    prompt: list[int]
    response: list[int]
    logp_policy: float
    """In nats."""


class ScoreFacts(TypedDict):
    """Facts of score."""

    formula: str
    """The reward as a formula."""
    reward: list[Reward]
    """The rewards of score.reward."""
    dropped: DroppedCounts
    """Responses that were not scored."""
    languages: dict[str, RewardFacts]
    """Language -> its scored responses."""


class PairFacts(TypedDict):
    """The preference pairs of one language."""

    pairs: int
    """Number of pairs."""
    prompts: NotRequired[int]
    """Number of prompts that have a pair; missing in the facts of earlier versions, where it is that of the pairs."""
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
    """Reason -> number of prompts without a pair, or for pair.keep of pairs that were left out."""


# Facts of pair, by language; a language without scores is missing.
PairStageFacts: TypeAlias = dict[str, PairFacts]

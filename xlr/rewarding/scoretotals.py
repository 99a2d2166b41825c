"""Figures of scores, added up shard by shard."""

import math
import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from xlr.data.quality import count_flaws
from xlr.detection import detector, is_in
from xlr.maths.noise import reward_noise
from xlr.records import Score
from xlr.rewarding.facts import RewardFacts

_CLEAR = 3  # times the noise of bfloat16: then most choices stay the same


class ScoreTotals:
    """Sums over scores. All scores of a prompt are added together, one after the other."""

    def __init__(self) -> None:
        self._rewards = array("d")
        self._sums: Counter[str] = Counter()
        self._flaws: Counter[str] = Counter()
        self._variances = array("d")  # of the rewards of each prompt with several responses

    def add(self, scores: Sequence[Score]) -> None:
        """Add scores."""
        self._rewards.extend(score.reward for score in scores)
        self._sums.update(
            tokens=sum(score.num_tokens for score in scores),
            chars=sum(score.num_chars for score in scores),
            in_language=sum(is_in(score.detected_lang, score.lang) for score in scores),
            undetected=sum(detector(score.lang) is None for score in scores),
        )
        self._flaws.update(count_flaws(scores))
        for _, rows in groupby(scores, lambda score: (score.lang, score.id)):
            rewards = [score.reward for score in rows]
            if len(rewards) > 1:
                self._variances.append(_variance(rewards))

    @property
    def rows(self) -> int:
        """Number of scores."""
        return len(self._rewards)

    @property
    def tokens(self) -> int:
        """Number of tokens of the scored texts."""
        return self._sums["tokens"]

    def facts(self) -> RewardFacts:
        """Means over scores, and the number of scored responses that have each flaw."""
        count = max(self.rows, 1)
        mean = sum(self._rewards) / count
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "reward_mean": mean,
            "reward_std": (sum((reward - mean) ** 2 for reward in self._rewards) / count) ** 0.5,
            "chars_mean": self._sums["chars"] / count,
            "in_language": None if self._sums["undetected"] else self._sums["in_language"] / count,
            "flaws": dict(sorted(self._flaws.items())),
        }

    def noise_warning(self) -> str | None:
        """A warning if rewards of a prompt's responses differ little more than bfloat16 changes one; None otherwise."""
        if not self._variances:
            return None
        spread = math.sqrt(statistics.fmean(self._variances))
        noise = reward_noise(self.tokens / self.rows)
        if spread > _CLEAR * noise:
            return None
        return (
            f"the rewards of a prompt's responses have a standard deviation of {spread:.2g} nats, of which rounding to "
            f"bfloat16 may explain {noise:.2g}: many choices would be noise; set score.dtype=float32, or score with "
            "models that differ more"
        )


def _variance(values: Sequence[float]) -> float:
    # `statistics.pvariance` computes with fractions: too slow for 150,000 prompts.
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / len(values)


def reward_facts(scores: Sequence[Score]) -> RewardFacts:
    """The facts of these scores; see `ScoreTotals.facts`."""
    totals = ScoreTotals()
    totals.add(scores)
    return totals.facts()

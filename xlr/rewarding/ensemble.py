"""Several rewards as one: the weighted mean of rewards that are standardised in each language."""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from xlr.maths.rewards import spread, standardised_mean
from xlr.records import RowKey, Score
from xlr.rewarding.modes import InMode
from xlr.run.rows import records, table_of
from xlr.settings.scoreconfig import Reward
from xlr.work.dropped import Dropped


@dataclass(frozen=True)
class Combined:
    """The responses of one iteration with the mean of several rewards, shard by shard."""

    modes: Mapping[Reward, InMode]
    """Reward -> its scores. Rows keep everything but the reward from the first one."""
    weights: Mapping[Reward, float]

    def by_shard(self, dropped: Dropped) -> Iterator[tuple[str, Sequence[RowKey], Any]]:
        """Each shard's name, keys of all responses, and Arrow table of scores; see `InMode.by_shard`.

        Args:
            dropped: receives the responses that lack one of the rewards.
        """
        weights = [self.weights[mode] for mode in self.modes]
        for name, keys, scored in self._joined(dropped):
            rewards = (
                standardised_mean([row.reward for row in own], self._spreads[own[0].lang], weights) for own in scored
            )
            rows = [replace(own[0], reward=reward) for own, reward in zip(scored, rewards, strict=True)]
            yield name, keys, table_of(Score, rows)

    def failed_translations(self, name: str) -> int:
        """Number of responses in a shard whose translation failed."""
        return sum(mode.failed_translations(name) for mode in self.modes.values())

    @cached_property
    def _spreads(self) -> dict[str, list[tuple[float, float]]]:
        """Language -> mean and standard deviation of each reward over the responses that have all of them."""
        rewards: defaultdict[str, list[array[float]]] = defaultdict(lambda: [array("d") for _ in self.modes])
        for _, _, scored in self._joined(Dropped()):
            for own in scored:
                for values, row in zip(rewards[own[0].lang], own, strict=True):
                    values.append(row.reward)
        return {lang: [spread(values) for values in own] for lang, own in rewards.items()}

    def _joined(self, dropped: Dropped) -> Iterator[tuple[str, Sequence[RowKey], list[list[Score]]]]:
        """Each shard's name, keys of all responses, and of each that has all rewards its score in each mode."""
        for shards in zip(*(own.by_shard(dropped) for own in self.modes.values()), strict=True):
            name, keys, _ = shards[0]
            first, *others = ({row.key: row for row in records(table, Score)} for _, _, table in shards)
            in_all = (key for key in first if all(key in own for own in others))
            yield name, keys, [[first[key], *(own[key] for own in others)] for key in in_all]

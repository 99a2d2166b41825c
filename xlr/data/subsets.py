"""Parts of the pairs of each language, chosen by a seed alone."""

from collections.abc import Sequence
from random import Random
from typing import Protocol, TypeVar

from xlr.errors import UserError


class OfLanguage(Protocol):
    """A row that belongs to a language."""

    @property
    def lang(self) -> str:
        """Its tag."""


Row = TypeVar("Row", bound=OfLanguage)


def replayed(earlier: Sequence[Row], share: float, seed: str) -> list[Row]:
    """A share of an earlier iteration's pairs in each language, rounded to whole pairs, in their order.

    Args:
        seed: decides which.

    Source: mixing pairs of earlier iterations, as in arXiv 2406.09760.
    """
    kept: set[int] = set()
    for lang, own in _by_language(earlier).items():
        kept.update(Random(f"{seed} {lang}").sample(own, round(share * len(own))))
    return [earlier[index] for index in sorted(kept)]


def _by_language(found: Sequence[OfLanguage]) -> dict[str, list[int]]:
    """The indices of the pairs of each language, in their order."""
    indices: dict[str, list[int]] = {}
    for index, pair in enumerate(found):
        indices.setdefault(pair.lang, []).append(index)
    return indices


def hold_out(training_pairs: Sequence[Row], per_language: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Hold out some pairs of every language. The choice depends only on the pairs and the seed.

    Returns:
        `(train, held_out)`, each in the order of the input.

    Raises:
        UserError: a language would have no pairs left to train on.
    """
    held: set[int] = set()
    for lang, own in _by_language(training_pairs).items():
        if per_language >= len(own):
            raise UserError(
                f"eval_pairs: holding out {per_language} of the {len(own)} pairs in {lang} leaves none to train on; "
                "lower it"
            )
        held.update(Random(f"{seed} {lang}").sample(own, per_language))
    train = [pair for index, pair in enumerate(training_pairs) if index not in held]
    return train, [training_pairs[index] for index in sorted(held)]

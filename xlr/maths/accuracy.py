"""How often a reward prefers the better response of a pair, with and without the help of their lengths."""

from collections.abc import Sequence

from xlr.maths.lengthcontrol import choose_pairs


def accuracy(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """Share of pairs whose chosen response has the higher value, from 0 to 1; a tie counts one half.

    Args:
        chosen: a value of each pair's chosen response, such as its reward or its length.
        rejected: the same of the rejected ones.
    """
    wins = sum((better > worse) + 0.5 * (better == worse) for better, worse in zip(chosen, rejected, strict=True))
    return wins / len(chosen)


def length_penalty(rewards: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]], unit: float = 1.0) -> float:
    """The alpha, in nats a character, under which the responses that a reward prefers are as long as the others.

    Args:
        rewards: the rewards of each pair's two responses, in nats.
        lengths: their lengths in characters.
        unit: as in `choose_pairs`.

    Raises:
        ValueError: a reward is not finite, or there are no pairs.

    Source: the length control of arXiv 2503.04647, section 3.3, applied to pairs of known order.
    """
    return choose_pairs(rewards, lengths, unit=unit).alpha

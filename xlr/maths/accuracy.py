"""How often and by how much a reward prefers the better response of a pair, with and without the help of lengths."""

from collections.abc import Sequence

import torch

from xlr.maths.lengthcontrol import choose_pairs

_RESAMPLES = 2000


def accuracy(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """Share of pairs whose chosen response has the higher value, from 0 to 1; a tie counts one half.

    Args:
        chosen: a value of each pair's chosen response, such as its reward or its length.
        rejected: the same of the rejected ones.
    """
    wins = sum((better > worse) + 0.5 * (better == worse) for better, worse in zip(chosen, rejected, strict=True))
    return wins / len(chosen)


def margin_interval(chosen: Sequence[float], rejected: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean difference of independent pairs: of the means of 2,000 samples drawn from them.

    Args:
        chosen, rejected: as in `accuracy`.

    Raises:
        ValueError: there are no pairs.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3, the percentile interval.
    """
    if not chosen:
        raise ValueError("the mean of no pairs has no interval")
    margins_N = torch.tensor(chosen, dtype=torch.float64) - torch.tensor(rejected, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randint(len(chosen), (len(chosen),), generator=generator) for _ in range(_RESAMPLES))
    means = torch.stack([margins_N[indices_N].mean() for indices_N in drawn])
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


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

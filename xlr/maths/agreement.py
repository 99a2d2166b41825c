"""How well two rewards agree on the order of a prompt's candidates, and two judges on the better of two answers.

Shapes: `N` candidates of one prompt. Candidates of different prompts are never compared, because the level of a reward
differs from prompt to prompt.
"""

import math
from collections.abc import Iterable, Sequence

from torch import Tensor


def spearman(first_N: Tensor, second_N: Tensor) -> float:
    """Spearman's rank correlation, with average ranks for ties; NaN if one reward is equal for all candidates.

    Source: Spearman, The Proof and Measurement of Association between Two Things, 1904.
    """
    return _correlation(_rank_differences(first_N), _rank_differences(second_N))


def kendall(first_N: Tensor, second_N: Tensor) -> float:
    """Kendall's tau-b; NaN if one reward is equal for all candidates.

    Source: Kendall, The Treatment of Ties in Ranking Problems, 1945.
    """
    return _correlation(_signs(first_N), _signs(second_N))


def same_order(first_N: Tensor, second_N: Tensor) -> float:
    """Number of candidate pairs that both rewards order the same way.

    A pair tied under either reward counts one half.
    """
    pairs = math.comb(len(first_N), 2)
    return (pairs + (_signs(first_N) * _signs(second_N)).sum().item() / 2) / 2


def chance_deviation(sizes: Iterable[int]) -> float:
    """Standard deviation of `same_order`, summed over prompts, for two independent random orders without ties.

    The mean is half of all pairs. Ties make the deviation smaller.

    Args:
        sizes: the number of candidates of each prompt.

    Source: Kendall, A New Measure of Rank Correlation, 1938: variance of S.
    """
    return math.sqrt(sum(n * (n - 1) * (2 * n + 5) / 18 for n in sizes)) / 2


def spearman_deviation(sizes: Iterable[int]) -> float:
    """Standard deviation of `spearman`, summed over prompts, for two independent random orders without ties.

    Args:
        sizes: the number of candidates of each prompt, 2 at least.

    Source: Kendall, Rank Correlation Methods, 1948: the variance is 1 / (n - 1).
    """
    return math.sqrt(sum(1 / (n - 1) for n in sizes))


def _correlation(first_NN: Tensor, second_NN: Tensor) -> float:
    """Daniels' general correlation coefficient: Spearman's of rank differences, Kendall's tau-b of signs.

    Source: Daniels, The Relation between Measures of Correlation in the Universe of Sample Permutations, 1944.
    """
    return ((first_NN * second_NN).sum() / (first_NN.square().sum() * second_NN.square().sum()).sqrt()).item()


def _signs(values_N: Tensor) -> Tensor:
    return (values_N[:, None] - values_N[None, :]).sign()


def _rank_differences(values_N: Tensor) -> Tensor:
    ranks_N = _signs(values_N).sum(1) / 2  # the average rank minus (N + 1) / 2
    return ranks_N[:, None] - ranks_N[None, :]


def same_side(first: Sequence[float], second: Sequence[float]) -> tuple[int, float]:
    """How often two judges prefer the same answer.

    Args:
        first: of each pair of answers, one judge's probability that the second is better; NaN if it gave none.
        second: the other judge's.

    Returns:
        The number of pairs in which both prefer an answer, and the share of these in which it is the same one.
    """
    sides = [(own > 0.5, other > 0.5) for own, other in zip(first, second, strict=True) if _prefers(own, other)]
    return len(sides), sum(own == other for own, other in sides) / max(len(sides), 1)


def _prefers(*preferences: float) -> bool:
    return all(abs(preference - 0.5) > 0 for preference in preferences)  # false for NaN

"""How far two rewards order the same candidates alike.

Shapes: `N` candidates of one prompt. Values of one prompt are compared with each other only: prompts differ in what
they are worth under any reward.
"""

import math
from collections.abc import Iterable

from torch import Tensor


def spearman(first_N: Tensor, second_N: Tensor) -> float:
    """Spearman's rank correlation, ties having their average rank; NaN where one of the two has one value only."""
    return _correlation(_rank_differences(first_N), _rank_differences(second_N))


def kendall(first_N: Tensor, second_N: Tensor) -> float:
    """Kendall's tau-b; NaN where one of the two has one value only."""
    return _correlation(_signs(first_N), _signs(second_N))


def same_order(first_N: Tensor, second_N: Tensor) -> float:
    """How many of the N (N - 1) / 2 pairs of candidates both order alike; one that either holds for equal is a half."""
    pairs = math.comb(len(first_N), 2)
    return (pairs + (_signs(first_N) * _signs(second_N)).sum().item() / 2) / 2


def chance_deviation(sizes: Iterable[int]) -> float:
    """Standard deviation of `same_order`, summed over prompts of these sizes, where two orders have nothing in common.

    Half of the pairs are then ordered alike on average. Ties only narrow it.

    Source: Kendall, A New Measure of Rank Correlation, 1938: variance of S.
    """
    return math.sqrt(sum(n * (n - 1) * (2 * n + 5) / 18 for n in sizes)) / 2


def spearman_deviation(sizes: Iterable[int]) -> float:
    """Standard deviation of `spearman`, summed over prompts of these sizes, where two orders have nothing in common.

    Source: Kendall, Rank Correlation Methods, 1948: the variance is 1 / (n - 1).
    """
    return math.sqrt(sum(1 / (n - 1) for n in sizes))


def _correlation(first_NN: Tensor, second_NN: Tensor) -> float:
    """Daniels' coefficient, which is Spearman's or Kendall's by what is said of each pair of candidates."""
    return ((first_NN * second_NN).sum() / (first_NN.square().sum() * second_NN.square().sum()).sqrt()).item()


def _signs(values_N: Tensor) -> Tensor:
    return (values_N[:, None] - values_N[None, :]).sign()


def _rank_differences(values_N: Tensor) -> Tensor:
    ranks_N = _signs(values_N).sum(1) / 2  # less the middle rank
    return ranks_N[:, None] - ranks_N[None, :]

"""Selects the chosen and the rejected response of each prompt, with a length penalty that balances their lengths.

Shapes: `P` prompts, `N` candidates of a prompt (prompts with fewer candidates are padded and masked).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ALPHA_GRID = tuple(i / 1000 for i in range(1000))
NEAREST_MEAN: Literal["nearest_mean"] = "nearest_mean"
Rejected = float | Literal["nearest_mean"]
"""Which of the candidates that are worse than the chosen one is rejected: a quantile of their rewards, 0 for the worst;
or the one whose reward is nearest to the mean of all candidates."""
NO_PAIR = -1


@dataclass(frozen=True)
class Choice:
    """The pairs of one language.

    `chosen_P` and `rejected_P` are indices into `N`, or `NO_PAIR` if no candidate of the prompt is below the upper
    bound. `alpha` is the length penalty in nats a character. `length_gap` is the absolute difference between the mean
    lengths of chosen and rejected, in characters.
    """

    alpha: float
    chosen_P: Tensor
    rejected_P: Tensor
    length_gap: float


# The pairs of a language without candidates, for example because filters removed them all.
NOTHING = Choice(0.0, torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long), 0.0)


def _choose(
    rewards_PN: Tensor, lengths_PN: Tensor, valid_PN: Tensor, alpha: float, upper_bound: float, rejected: Rejected
) -> tuple[Tensor, Tensor, Tensor]:
    penalised_PN = rewards_PN - alpha * lengths_PN
    may_win_PN = valid_PN & (penalised_PN < upper_bound)
    # argmax and argmin return the first of equal values, so the lower sample wins a tie.
    chosen_P = penalised_PN.masked_fill(~may_win_PN, -math.inf).argmax(1)
    if rejected == 0.0:
        rejected_P = penalised_PN.masked_fill(~valid_PN, math.inf).argmin(1)
    else:
        rejected_P = _reject(penalised_PN, valid_PN, chosen_P, rejected)
    return chosen_P, rejected_P, may_win_PN.any(1)


def _reject(penalised_PN: Tensor, valid_PN: Tensor, chosen_P: Tensor, rejected: Rejected) -> Tensor:
    """The rejected candidate; the chosen one where none is worse."""
    worse_PN = valid_PN & (penalised_PN < penalised_PN.gather(1, chosen_P[:, None]))
    if rejected == NEAREST_MEAN:
        mean_P = penalised_PN.masked_fill(~valid_PN, 0.0).sum(1) / valid_PN.sum(1)
        rejected_P = (penalised_PN - mean_P[:, None]).abs().masked_fill(~worse_PN, math.inf).argmin(1)
    else:
        order_PN = penalised_PN.masked_fill(~worse_PN, math.inf).sort(dim=1, stable=True).indices
        rank_P = (rejected * (worse_PN.sum(1) - 1).clamp_min(0)).floor().long()
        rejected_P = order_PN.gather(1, rank_P[:, None]).squeeze(1)
    return torch.where(worse_PN.any(1), rejected_P, chosen_P)


def _length_gap(lengths_PN: Tensor, chosen_P: Tensor, rejected_P: Tensor, has_pair_P: Tensor) -> float:
    """|mean length of chosen - mean length of rejected| over prompts with a pair, in characters; inf without any."""
    if not has_pair_P.any():
        return math.inf
    gap_P = lengths_PN.gather(1, chosen_P[:, None]) - lengths_PN.gather(1, rejected_P[:, None])
    return abs(gap_P[has_pair_P].mean().item())


def choose_pairs(
    rewards: Sequence[Sequence[float]],
    lengths: Sequence[Sequence[int]],
    length_control: bool = True,
    upper_bound: float = math.inf,
    rejected: Rejected = 0.0,
    unit: float = 1.0,
) -> Choice:
    """Select pairs by r' = r - alpha * length: chosen = argmax of r' below the upper bound, rejected = argmin of r'.

    alpha is the value of 0, 0.001, ..., 0.999 times the unit that minimises the gap between the mean lengths of chosen
    and rejected (the smallest such value), or 0 without length control.

    Args:
        rewards: the rewards of each prompt's candidates, in nats.
        lengths: their lengths in characters, in the same shape.
        upper_bound: a candidate is never chosen if its penalised reward is this or more.
        rejected: another rule for the rejected candidate, which is then always worse than the chosen one.
        unit: of alpha; see `unit_of`.

    Raises:
        ValueError: a reward is not finite, a prompt has no candidates, or there are no prompts.

    Source: arXiv 2503.04647, section 3.3 and its published code; arXiv 2605.26293 for the mean.
    """
    candidates = _padded(rewards, lengths)
    grid = [unit * alpha for alpha in ALPHA_GRID] if length_control else [0.0]
    gaps = _gaps(candidates, grid, upper_bound, rejected)
    best = min(range(len(grid)), key=gaps.__getitem__)  # the smallest alpha among equal gaps
    chosen_P, rejected_P, has_pair_P = _choose(*candidates, grid[best], upper_bound, rejected)
    chosen_P = chosen_P.masked_fill(~has_pair_P, NO_PAIR)
    return Choice(grid[best], chosen_P, rejected_P.masked_fill(~has_pair_P, NO_PAIR), gaps[best])


def length_gaps(
    rewards: Sequence[Sequence[float]],
    lengths: Sequence[Sequence[int]],
    upper_bound: float = math.inf,
    rejected: Rejected = 0.0,
    unit: float = 1.0,
) -> list[float]:
    """The length gap at each alpha of `ALPHA_GRID`, in units, in characters; infinite at an alpha without any pair.

    Takes the arguments and raises the errors of `choose_pairs`.
    """
    return _gaps(_padded(rewards, lengths), [unit * alpha for alpha in ALPHA_GRID], upper_bound, rejected)


def unit_of(rewards: Sequence[float]) -> float:
    """The unit of alpha for rewards that are not in nats: a hundredth of their standard deviation.

    Log-ratios of responses differ by about a hundred nats, for which the grid of alphas was made.
    """
    return statistics.pstdev(rewards) / 100 or 1.0


def _gaps(
    candidates: tuple[Tensor, Tensor, Tensor], grid: Sequence[float], upper_bound: float, rejected: Rejected
) -> list[float]:
    _, lengths_PN, _ = candidates
    return [_length_gap(lengths_PN, *_choose(*candidates, alpha, upper_bound, rejected)) for alpha in grid]


def largest_margins(margins: Sequence[float], share: float) -> list[bool]:
    """Whether each pair is kept: the share with the largest margins, rounded up; of equal margins the earlier ones."""
    count = math.ceil(round(share * len(margins), 9))  # 0.07 of 100 are 7
    kept = set(sorted(range(len(margins)), key=lambda item: -margins[item])[:count])
    return [item in kept for item in range(len(margins))]


def _padded(rewards: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Padded rewards, padded lengths and a mask that is False at padding, each `(P, N)`."""
    if not rewards or not all(rewards):
        raise ValueError("every prompt needs at least one candidate")
    width = max(map(len, rewards))
    valid_PN = torch.tensor([[i < len(row) for i in range(width)] for row in rewards])
    rewards_PN = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rewards], dtype=torch.float64)
    lengths_PN = torch.tensor([[*row, *[0] * (width - len(row))] for row in lengths], dtype=torch.float64)
    if not rewards_PN.isfinite().all():
        raise ValueError("a reward is not finite")
    return rewards_PN, lengths_PN, valid_PN

"""Which response of each prompt is chosen and which rejected, with the length penalty that balances them.

Shapes: `P` prompts, `N` candidates of a prompt (rows with fewer are padded and masked).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALPHA_GRID = tuple(i / 1000 for i in range(1000))


@dataclass(frozen=True)
class Choice:
    """The outcome for one language: indices into `N`, -1 where no candidate is below the upper bound."""

    alpha: float
    chosen_P: Tensor
    rejected_P: Tensor
    length_gap: float


# Of a language whose responses were all filtered out.
NOTHING = Choice(0.0, torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long), 0.0)


def _choose(
    rewards_PN: Tensor, lengths_PN: Tensor, valid_PN: Tensor, alpha: float, upper_bound: float
) -> tuple[Tensor, Tensor, Tensor]:
    penalised_PN = rewards_PN - alpha * lengths_PN
    may_win_PN = valid_PN & (penalised_PN < upper_bound)
    # argmax and argmin take the first of equals, so ties go to the lowest sample.
    chosen_P = penalised_PN.masked_fill(~may_win_PN, -math.inf).argmax(1)
    rejected_P = penalised_PN.masked_fill(~valid_PN, math.inf).argmin(1)
    return chosen_P, rejected_P, may_win_PN.any(1)


def _length_gap(lengths_PN: Tensor, chosen_P: Tensor, rejected_P: Tensor, has_pair_P: Tensor) -> float:
    """|mean length of chosen - mean length of rejected|, in characters."""
    if not has_pair_P.any():
        return math.inf
    gap_P = lengths_PN.gather(1, chosen_P[:, None]) - lengths_PN.gather(1, rejected_P[:, None])
    return abs(gap_P[has_pair_P].mean().item())


def choose_pairs(
    rewards: Sequence[Sequence[float]],
    lengths: Sequence[Sequence[int]],
    length_control: bool = True,
    upper_bound: float = math.inf,
) -> Choice:
    """r' = r - alpha * len; chosen = argmax of r' below the bound, rejected = argmin of r'.

    alpha is the smallest value of 0, 0.001, ..., 0.999 that minimises the gap between the mean lengths of
    chosen and rejected, or 0 without length control.

    Args:
        rewards: the candidates' rewards of each prompt, in nats.
        lengths: their lengths in characters, of the same shape.
        upper_bound: candidates whose penalised reward reaches it cannot be chosen.

    Raises:
        ValueError: a reward that is not finite, a prompt without candidates, no prompts.

    Source: arXiv 2503.04647, section 3.3 and its published code.
    """
    candidates = _padded(rewards, lengths)
    grid = ALPHA_GRID if length_control else (0.0,)
    gaps = _gaps(candidates, grid, upper_bound)
    best = min(range(len(grid)), key=gaps.__getitem__)  # the first of equals
    chosen_P, rejected_P, has_pair_P = _choose(*candidates, grid[best], upper_bound)
    chosen_P = chosen_P.masked_fill(~has_pair_P, -1)
    return Choice(grid[best], chosen_P, rejected_P.masked_fill(~has_pair_P, -1), gaps[best])


def length_gaps(
    rewards: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]], upper_bound: float = math.inf
) -> list[float]:
    """The gap that each alpha of the grid would leave, in characters, infinite where it leaves no pair.

    Arguments and errors are those of `choose_pairs`.
    """
    return _gaps(_padded(rewards, lengths), ALPHA_GRID, upper_bound)


def _gaps(candidates: tuple[Tensor, Tensor, Tensor], grid: Sequence[float], upper_bound: float) -> list[float]:
    _, lengths_PN, _ = candidates
    return [_length_gap(lengths_PN, *_choose(*candidates, alpha, upper_bound)) for alpha in grid]


def _padded(rewards: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, lengths and which of them are no padding, each [P, N]."""
    if not rewards or not all(rewards):
        raise ValueError("every prompt needs at least one candidate")
    width = max(map(len, rewards))
    valid_PN = torch.tensor([[i < len(row) for i in range(width)] for row in rewards])
    rewards_PN = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rewards], dtype=torch.float64)
    lengths_PN = torch.tensor([[*row, *[0] * (width - len(row))] for row in lengths], dtype=torch.float64)
    if not rewards_PN.isfinite().all():
        raise ValueError("a reward is not finite")
    return rewards_PN, lengths_PN, valid_PN

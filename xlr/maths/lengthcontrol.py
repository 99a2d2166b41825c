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

    `chosen_PK` and `rejected_PK` are indices into `N`, or `NO_PAIR` where the prompt has no such pair. `alpha` is the
    length penalty in nats a character. `length_gap` is the absolute difference between the mean lengths of chosen and
    rejected, in characters.
    """

    alpha: float
    chosen_PK: Tensor
    rejected_PK: Tensor
    length_gap: float


@dataclass(frozen=True)
class Rule:
    """How pairs are chosen by penalised rewards."""

    upper_bound: float = math.inf
    """A candidate is never chosen if its penalised reward is this or more."""
    rejected: Rejected = 0.0
    """Which candidate is rejected; unless it is the worst, it is always worse than the chosen one."""
    per_prompt: int = 1
    """The most pairs of a prompt (K), if there are twice as many candidates. Each is chosen among the candidates that
    are in no pair yet."""


PLAIN = Rule()
"""One pair a prompt: the best and the worst candidate."""

_NONE = torch.empty((0, 1), dtype=torch.long)
# The pairs of a language without candidates, for example because filters removed them all.
NOTHING = Choice(0.0, _NONE, _NONE, 0.0)


def _choose(
    rewards_PN: Tensor, lengths_PN: Tensor, valid_PN: Tensor, alpha: float, rule: Rule
) -> tuple[Tensor, Tensor]:
    """Chosen and rejected candidates, each `(P, K)`; `NO_PAIR` where there is no pair. K is at most half of N."""
    penalised_PN, left_PN = rewards_PN - alpha * lengths_PN, valid_PN
    pairs: list[tuple[Tensor, Tensor]] = []
    for number in range(min(rule.per_prompt, max(rewards_PN.shape[1] // 2, 1))):
        chosen_P, rejected_P, has_pair_P = _choose_one(penalised_PN, left_PN, rule)
        left_PN = left_PN.scatter(1, chosen_P[:, None], False).scatter(1, rejected_P[:, None], False)
        if number > 0:  # a single candidate that is left is no pair
            has_pair_P = has_pair_P & (chosen_P != rejected_P)
        pairs.append((chosen_P.masked_fill(~has_pair_P, NO_PAIR), rejected_P.masked_fill(~has_pair_P, NO_PAIR)))
    chosen, rejected = zip(*pairs, strict=True)
    return torch.stack(chosen, 1), torch.stack(rejected, 1)


def _choose_one(penalised_PN: Tensor, valid_PN: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    may_win_PN = valid_PN & (penalised_PN < rule.upper_bound)
    # argmax and argmin return the first of equal values, so the lower sample wins a tie.
    chosen_P = penalised_PN.masked_fill(~may_win_PN, -math.inf).argmax(1)
    if rule.rejected == 0.0:
        rejected_P = penalised_PN.masked_fill(~valid_PN, math.inf).argmin(1)
    else:
        rejected_P = _reject(penalised_PN, valid_PN, chosen_P, rule.rejected)
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


def _length_gap(lengths_PN: Tensor, chosen_PK: Tensor, rejected_PK: Tensor) -> float:
    """|mean length of chosen - mean length of rejected| over the pairs, in characters; inf without any."""
    is_pair_PK = chosen_PK != NO_PAIR
    if not is_pair_PK.any():
        return math.inf
    gap_PK = lengths_PN.gather(1, chosen_PK.clamp_min(0)) - lengths_PN.gather(1, rejected_PK.clamp_min(0))
    return abs(gap_PK[is_pair_PK].mean().item())


def choose_pairs(
    rewards: Sequence[Sequence[float]],
    lengths: Sequence[Sequence[int]],
    length_control: bool = True,
    rule: Rule = PLAIN,
    unit: float = 1.0,
) -> Choice:
    """Select pairs by r' = r - alpha * length: chosen = argmax of r' below the upper bound, rejected = argmin of r'.

    alpha is the value of 0, 0.001, ..., 0.999 times the unit that minimises the gap between the mean lengths of chosen
    and rejected (the smallest such value), or 0 without length control.

    Args:
        rewards: the rewards of each prompt's candidates, in nats.
        lengths: their lengths in characters, in the same shape.
        rule: another rule for the rejected candidate, an upper bound, or more pairs of a prompt.
        unit: of alpha; see `unit_of`.

    Raises:
        ValueError: a reward is not finite, a prompt has no candidates, or there are no prompts.

    Source: arXiv 2503.04647, section 3.3 and its published code; arXiv 2605.26293 for the mean.
    """
    candidates = _padded(rewards, lengths)
    grid = [unit * alpha for alpha in ALPHA_GRID] if length_control else [0.0]
    gaps = _gaps(candidates, grid, rule)
    best = min(range(len(grid)), key=gaps.__getitem__)  # the smallest alpha among equal gaps
    return Choice(grid[best], *_choose(*candidates, grid[best], rule), gaps[best])


def length_gaps(
    rewards: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]], rule: Rule = PLAIN, unit: float = 1.0
) -> list[float]:
    """The length gap at each alpha of `ALPHA_GRID`, in units, in characters; infinite at an alpha without any pair.

    Takes the arguments and raises the errors of `choose_pairs`.
    """
    return _gaps(_padded(rewards, lengths), [unit * alpha for alpha in ALPHA_GRID], rule)


def unit_of(rewards: Sequence[float]) -> float:
    """The unit of alpha for rewards that are not in nats: a hundredth of their standard deviation.

    Log-ratios of responses differ by about a hundred nats, for which the grid of alphas was made.
    """
    return statistics.pstdev(rewards) / 100 or 1.0


def _gaps(candidates: tuple[Tensor, Tensor, Tensor], grid: Sequence[float], rule: Rule) -> list[float]:
    _, lengths_PN, _ = candidates
    return [_length_gap(lengths_PN, *_choose(*candidates, alpha, rule)) for alpha in grid]


Kept = Literal["largest", "middle", "smallest"]
"""Which pairs are kept, by their margins."""


def kept_by_margin(margins: Sequence[float], share: float, which: Kept = "largest") -> list[bool]:
    """Whether each pair is kept: a share of them, rounded up; of equal margins the earlier ones.

    Args:
        which: those with the largest margins, with the smallest ones, or those in the middle. Of the pairs around the
            middle as many are left out above as below, or one more above.
    """
    count = math.ceil(round(share * len(margins), 9))  # 0.07 of 100 are 7
    order = sorted(range(len(margins)), key=lambda item: margins[item] if which == "smallest" else -margins[item])
    start = (len(margins) - count + 1) // 2 if which == "middle" else 0
    kept = set(order[start : start + count])
    return [item in kept for item in range(len(margins))]


def margin_weights(margins: Sequence[float]) -> list[float]:
    """The weight of each pair: its margin over the mean margin, so that the weights average to 1.

    All weights are 1 where all margins are 0.
    """
    mean = statistics.fmean(margins) if margins else 0.0
    return [margin / mean if mean else 1.0 for margin in margins]


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

"""How much log-probabilities of the same tokens may differ between two ways to compute them. All checks use this model.

In float32 the difference is relative. In bfloat16 the differences of a response's tokens are nearly independent, so
their sum grows with the square root of the number of tokens.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

# Standard deviation of a token's log-probability in nats, bfloat16 against float32 on a CPU, where logits are rounded,
# too: the largest of SmolLM2-135M's measurements (benchmarks/precision.py). Two computations in bfloat16 differ less.
BFLOAT16_TOKEN_SD = 0.08
_DEVIATIONS = 5  # standard deviations; of ten million sound responses, about six differ by more
_RELATIVE, _ABSOLUTE = 1e-4, 1e-3  # of float32 sums


def allowed_difference(logp: float, tokens: int, bfloat16: bool) -> float:
    """How far two computations of a response's log-probability may differ, in nats.

    Args:
        logp: one of the two.
        tokens: tokens of the response.
    """
    exact = _RELATIVE * abs(logp) + _ABSOLUTE
    return exact + (_DEVIATIONS * BFLOAT16_TOKEN_SD * math.sqrt(tokens) if bfloat16 else 0.0)


def reward_noise(tokens: float) -> float:
    """Standard deviation in nats of a response's reward in bfloat16 against float32.

    It is about that of one log-probability: the errors of policy and reference partly cancel (benchmarks/precision.py).

    Args:
        tokens: tokens of the response.
    """
    return BFLOAT16_TOKEN_SD * math.sqrt(tokens)


class AtZero(NamedTuple):
    """A preference loss where every log-ratio is zero."""

    value: float
    """The loss."""
    slope: float
    """The larger of its derivatives by the two log-ratios of a pair, without sign."""
    curvature: float
    """The larger of its second derivatives by one of them, without sign."""


def allowed_loss_difference(losses: Sequence[tuple[AtZero, float]], pairs: int, bfloat16: bool) -> float:
    """How far the mean preference loss may differ from its value at zero while both models have the same weights.

    Errors of the log-ratios change the mean by the slope; half the curvature is added, as their squares do not cancel.

    Args:
        losses: each loss of the sum, with the number of tokens whose errors add up to its log-ratios of all pairs.
        pairs: number of pairs of the mean.
    """
    exact = _ABSOLUTE * max(1.0, abs(sum(zero.value for zero, _ in losses)))
    if not bfloat16:
        return exact
    sds = [(zero, BFLOAT16_TOKEN_SD * math.sqrt(tokens)) for zero, tokens in losses]
    return exact + sum(_DEVIATIONS * zero.slope * sd + zero.curvature / 2 * sd**2 for zero, sd in sds) / pairs

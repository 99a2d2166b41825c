"""How much log-probabilities of the same tokens may differ between two ways to compute them. All checks use this model.

In float32 the difference is relative. In bfloat16 the differences of a response's tokens are nearly independent, so
their sum grows with the square root of the number of tokens.
"""

import math

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


def allowed_loss_difference(beta: float, pairs: int, tokens: float, bfloat16: bool) -> float:
    """How far the mean DPO loss may differ from ln 2 while policy and reference have the same weights.

    Near zero, the loss is `ln 2 - beta / 2 * logits`. The logits of a pair are the sum of the errors of all its tokens.

    Args:
        pairs: number of pairs of the mean.
        tokens: tokens of all their responses.
    """
    if not bfloat16:
        return _ABSOLUTE
    return _ABSOLUTE + _DEVIATIONS * beta / 2 * BFLOAT16_TOKEN_SD * math.sqrt(tokens) / pairs

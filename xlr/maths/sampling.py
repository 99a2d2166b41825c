"""Sampling of tokens.

Shapes: `B` rows, `V` vocabulary.
"""

import torch
from torch import Tensor


def draw(logits_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Sample one token a row from softmax(logits), by inverse transform sampling.

    Args:
        logits_BV: -inf for tokens that must not be sampled.
        uniforms_B: one random number a row, float64 in [0, 1).

    Returns:
        `(B,)` token ids; never a token with probability 0.
    """
    cumulative_BV = torch.softmax(logits_BV, -1).cumsum(-1)
    total_B = cumulative_BV[:, -1]
    targets_B = (uniforms_B * total_B.double()).to(total_B)
    # Rounding may raise a target to the total, which lies after the last token.
    targets_B = torch.minimum(targets_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    return torch.searchsorted(cumulative_BV, targets_B[:, None], right=True).squeeze(-1)

"""Drawing tokens. Shapes: `B` rows, `V` vocabulary."""

import torch
from torch import Tensor


def draw(logits_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """One token a row by inverting the cumulative distribution of softmax(logits).

    Args:
        logits_BV: -inf where a token is excluded.
        uniforms_B: float64 in [0, 1), one a row.

    Returns:
        `(B,)` token ids; a token of probability 0 is never drawn.
    """
    cumulative_BV = torch.softmax(logits_BV, -1).cumsum(-1)
    total_B = cumulative_BV[:, -1]
    targets_B = (uniforms_B * total_B.double()).to(total_B)
    # Rounding may lift a target to the total, beyond every token.
    targets_B = torch.minimum(targets_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    return torch.searchsorted(cumulative_BV, targets_B[:, None], right=True).squeeze(-1)

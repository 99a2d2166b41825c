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
    probabilities_BV = torch.softmax(logits_BV, -1)
    cumulative_BV = probabilities_BV.cumsum(-1)
    uniforms_B = uniforms_B.to(cumulative_BV)
    tokens_B = torch.searchsorted(cumulative_BV, uniforms_B[:, None].contiguous(), right=True).squeeze(-1)
    # The sum may round to less than 1; a number beyond it means the last token that has any probability.
    beyond_B = uniforms_B >= cumulative_BV[:, -1]
    if beyond_B.any():
        positions_V = torch.arange(logits_BV.shape[1], device=logits_BV.device)
        tokens_B[beyond_B] = ((probabilities_BV[beyond_B] > 0) * positions_V).amax(-1)
    return tokens_B

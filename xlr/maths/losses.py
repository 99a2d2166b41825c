"""Preference losses, one value a pair; the caller averages.

Shapes: `B` pairs.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_logits(
    policy_chosen_logps_B: Tensor,
    policy_rejected_logps_B: Tensor,
    reference_chosen_logps_B: Tensor,
    reference_rejected_logps_B: Tensor,
) -> Tensor:
    """The policy's margin of chosen over rejected minus the reference's margin.

    Returns:
        `(B,)`, in nats: the term that eq. 7 of arXiv 2305.18290 multiplies by beta.
    """
    policy_margin_B = policy_chosen_logps_B - policy_rejected_logps_B
    reference_margin_B = reference_chosen_logps_B - reference_rejected_logps_B
    return policy_margin_B - reference_margin_B


def sigmoid_loss(logits_B: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The DPO loss, -log sigmoid(beta * logits); with label smoothing, conservative DPO.

    Args:
        logits_B: from `dpo_logits`.
        beta: inverse temperature of the implicit reward.
        label_smoothing: probability that a preference is flipped, in [0, 0.5).

    Returns:
        `(B,)`. Source: arXiv 2305.18290 eq. 7; with label smoothing eq. 3 of Mitchell, "A note on DPO with noisy
        preferences".
    """
    keep_B, flip_B = -logsigmoid(beta * logits_B), -logsigmoid(-beta * logits_B)
    return (1 - label_smoothing) * keep_B + label_smoothing * flip_B


def ipo_loss(logits_B: Tensor, beta: float) -> Tensor:
    """The IPO loss, (logits - 1 / (2 beta))^2.

    Args:
        logits_B: from `dpo_logits`, with log-probabilities averaged over each response's tokens, as in the authors'
            code and TRL: the loss of summed log-probabilities would depend on length.
        beta: strength of the regularisation, tau in the paper.

    Returns:
        `(B,)`. Source: arXiv 2310.12036 eq. 17.
    """
    return (logits_B - 1 / (2 * beta)) ** 2


def nll(chosen_logps_B: Tensor, chosen_lengths_B: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen response, averaged over that response's tokens.

    Args:
        chosen_logps_B: summed log-probabilities.
        chosen_lengths_B: tokens of each response, terminator included.

    Returns:
        `(B,)`, in nats a token. Source: arXiv 2404.19733 eq. 1 (NLL term), which arXiv 2503.04647 uses.
    """
    return -chosen_logps_B / chosen_lengths_B

"""Preference losses, one value a pair; the caller averages.

A log-ratio is a response's log-probability under the policy minus that under the reference, in nats.

Shapes: `B` pairs. Every loss is `(B,)`.
"""

import math

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


def robust_loss(logits_B: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """The robust DPO loss: an unbiased estimate of the DPO loss without the flipped preferences.

    Args:
        logits_B: from `dpo_logits`.
        label_smoothing: probability that a preference is flipped, in [0, 0.5).

    Source: arXiv 2403.00409.
    """
    keep_B, flip_B = -logsigmoid(beta * logits_B), -logsigmoid(-beta * logits_B)
    return ((1 - label_smoothing) * keep_B - label_smoothing * flip_B) / (1 - 2 * label_smoothing)


def hinge_loss(logits_B: Tensor, beta: float) -> Tensor:
    """The hinge loss, max(0, 1 - beta * logits).

    Args:
        logits_B: from `dpo_logits`.
        beta: inverse of the margin that is asked for.

    Source: arXiv 2309.06657, whose loss is that of SLiC (arXiv 2305.10425) with log-ratios.
    """
    return (1 - beta * logits_B).relu()


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


def exo_pair_loss(logits_B: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """The EXO loss: the KL divergence of the policy's preference from a label that is right but for `label_smoothing`.

    Args:
        logits_B: from `dpo_logits`.
        label_smoothing: probability of the rejected response under the label, in (0, 0.5).

    Source: arXiv 2402.00856 eq. 16, for two responses.
    """
    keep_B, flip_B = logsigmoid(beta * logits_B), logsigmoid(-beta * logits_B)
    wrong_B = flip_B.exp() * (flip_B - math.log(label_smoothing))
    return keep_B.exp() * (keep_B - math.log1p(-label_smoothing)) + wrong_B


def discopop_loss(logits_B: Tensor, beta: float, tau: float) -> Tensor:
    """The DiscoPOP loss: from the logistic loss to the exponential one as the logits rise.

    Args:
        logits_B: from `dpo_logits`.
        tau: temperature of the change from one to the other, in (0, 1].

    Source: arXiv 2406.08414 eq. 5.
    """
    scaled_B = beta * logits_B
    # One exponential: two of very negative logits would overflow, and give infinity times zero.
    exponential_B = (logsigmoid(scaled_B / tau) - scaled_B).exp()
    return (-scaled_B / tau).sigmoid() * -logsigmoid(scaled_B) + exponential_B


def apo_zero_loss(chosen_ratios_B: Tensor, rejected_ratios_B: Tensor, beta: float) -> Tensor:
    """The APO-zero loss: chosen responses become likelier, rejected ones less likely.

    Source: arXiv 2408.06266 eq. 7.
    """
    return (-beta * chosen_ratios_B).sigmoid() + (beta * rejected_ratios_B).sigmoid()


def apo_down_loss(chosen_ratios_B: Tensor, rejected_ratios_B: Tensor, beta: float) -> Tensor:
    """The APO-down loss: both responses become less likely, the rejected one more so.

    Source: arXiv 2408.06266 eq. 8.
    """
    return (beta * chosen_ratios_B).sigmoid() + (beta * (rejected_ratios_B - chosen_ratios_B)).sigmoid()


def sppo_hard_loss(chosen_ratios_B: Tensor, rejected_ratios_B: Tensor, beta: float) -> Tensor:
    """The SPPO loss: log-ratios are to be 1 / (2 beta) and -1 / (2 beta).

    Source: arXiv 2405.00675 eq. 4.7, where the chosen response always wins.
    """
    return (chosen_ratios_B - 0.5 / beta) ** 2 + (rejected_ratios_B + 0.5 / beta) ** 2


def nca_pair_loss(chosen_ratios_B: Tensor, rejected_ratios_B: Tensor, beta: float) -> Tensor:
    """The NCA loss of pairs: like `bco_pair_loss`, but held near the reference on both responses.

    Source: arXiv 2402.05369.
    """
    chosen_B, rejected_B = beta * chosen_ratios_B, beta * rejected_ratios_B
    return -logsigmoid(chosen_B) - 0.5 * logsigmoid(-chosen_B) - 0.5 * logsigmoid(-rejected_B)


def kto_loss(
    chosen_ratios_B: Tensor, rejected_ratios_B: Tensor, beta: float, reference_point: Tensor | float
) -> Tensor:
    """The KTO losses of both responses of a pair: chosen ones are desirable, rejected ones are not.

    Args:
        reference_point: the policy's KL divergence from the reference, at least 0, in nats, without gradient; see
            `kl_estimate`.

    Source: arXiv 2402.01306 eq. 8, with equal weights. With a reference point of 0 it is `apo_zero_loss`.
    """
    desirable_B = (beta * (reference_point - chosen_ratios_B)).sigmoid()
    return desirable_B + (beta * (rejected_ratios_B - reference_point)).sigmoid()


def kl_estimate(ratio_sum: Tensor, count: Tensor) -> Tensor:
    """The reference point of KTO: the mean log-ratio of responses after prompts that they do not answer, at least 0.

    Args:
        ratio_sum: sum of the log-ratios, a scalar.
        count: their number, a scalar; without any the estimate is 0.

    Source: arXiv 2402.01306, section 4.1.
    """
    return (ratio_sum / count.clamp_min(1)).clamp_min(0)


def bco_pair_loss(chosen_ratios_B: Tensor, rejected_ratios_B: Tensor, beta: float) -> Tensor:
    """The BCO loss of pairs: a classifier that tells chosen responses from rejected ones.

    The paper subtracts a running mean of rewards first. It is left out here, as in TRL since its version 1.

    Source: arXiv 2404.04656.
    """
    return -logsigmoid(beta * chosen_ratios_B) - logsigmoid(-beta * rejected_ratios_B)


def simpo_loss(chosen_means_B: Tensor, rejected_means_B: Tensor, beta: float, gamma: float) -> Tensor:
    """The SimPO loss, -log sigmoid(beta * (chosen - rejected) - gamma), which has no reference.

    Args:
        chosen_means_B: the policy's log-probabilities of the chosen responses, averaged over their tokens.
        rejected_means_B: those of the rejected responses.
        gamma: target margin of the reward.

    Source: arXiv 2405.14734 eq. 6.
    """
    return -logsigmoid(beta * (chosen_means_B - rejected_means_B) - gamma)


def nll(chosen_logps_B: Tensor, chosen_lengths_B: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen response, averaged over that response's tokens.

    Args:
        chosen_logps_B: summed log-probabilities.
        chosen_lengths_B: tokens of each response, terminator included.

    Returns:
        `(B,)`, in nats a token. Source: arXiv 2404.19733 eq. 1 (NLL term), which arXiv 2503.04647 uses.
    """
    return -chosen_logps_B / chosen_lengths_B

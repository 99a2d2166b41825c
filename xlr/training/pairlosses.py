"""The preference losses that the configuration asks for, of each pair, and their values where training starts.

Shapes: `B` pairs; `B2` chosen and rejected of each.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from xlr.maths import losses
from xlr.maths.noise import AtZero
from xlr.settings.trainconfig import LossType, TrainConfig

# These losses take the mean log-probability of a response's tokens. The other losses take the sum.
AVERAGED: frozenset[LossType] = frozenset({"ipo", "sigmoid_norm", "simpo"})

# Of the log-ratios of chosen and rejected. The other losses are of their difference, but for SimPO.
_OF_RATIOS: dict[LossType, Callable[[Tensor, Tensor, float], Tensor]] = {
    "apo_zero": losses.apo_zero_loss,
    "apo_down": losses.apo_down_loss,
    "sppo_hard": losses.sppo_hard_loss,
    "nca_pair": losses.nca_pair_loss,
    "bco_pair": losses.bco_pair_loss,
}


def _of_logits(train: TrainConfig) -> dict[LossType, Callable[[Tensor, float], Tensor]]:
    smoothing = train.label_smoothing
    return {
        "sigmoid": partial(losses.sigmoid_loss, label_smoothing=smoothing),
        "sigmoid_norm": losses.sigmoid_loss,
        "robust": partial(losses.robust_loss, label_smoothing=smoothing),
        "hinge": losses.hinge_loss,
        "ipo": losses.ipo_loss,
        "exo_pair": partial(losses.exo_pair_loss, label_smoothing=smoothing),
        "discopop": partial(losses.discopop_loss, tau=train.discopop_tau),
    }


def pair_losses(
    train: TrainConfig,
    logps_B2: Tensor,
    reference_logps_B2: Tensor,
    lengths_B2: Tensor,
    reference_point: Tensor | float = 0.0,
) -> Tensor:
    """The weighted sum of the configured preference losses of each pair.

    Args:
        logps_B2: summed log-probabilities under the policy, in nats.
        reference_logps_B2: those under the reference; SimPO ignores them.
        lengths_B2: tokens of the responses.
        reference_point: that of KTO; see `losses.kl_estimate`.

    Returns:
        `(B,)`.
    """
    summed, averaged = (logps_B2, reference_logps_B2), (logps_B2 / lengths_B2, reference_logps_B2 / lengths_B2)
    each = [
        weight * _loss(train, name, *(averaged if name in AVERAGED else summed), reference_point)
        for name, weight in train.losses
    ]
    return torch.stack(each).sum(0)


def _loss(
    train: TrainConfig,
    name: LossType,
    logps_B2: Tensor,
    reference_logps_B2: Tensor,
    reference_point: Tensor | float = 0.0,
) -> Tensor:
    """One loss of each pair, from summed or averaged log-probabilities."""
    chosen_B, rejected_B = logps_B2.T
    reference_chosen_B, reference_rejected_B = reference_logps_B2.T
    if name == "simpo":
        return losses.simpo_loss(chosen_B, rejected_B, train.beta, train.simpo_gamma)
    if name == "kto":
        ratios = chosen_B - reference_chosen_B, rejected_B - reference_rejected_B
        return losses.kto_loss(*ratios, train.beta, reference_point)
    if name in _OF_RATIOS:
        return _OF_RATIOS[name](chosen_B - reference_chosen_B, rejected_B - reference_rejected_B, train.beta)
    logits_B = losses.dpo_logits(chosen_B, rejected_B, reference_chosen_B, reference_rejected_B)
    return _of_logits(train)[name](logits_B, train.beta)


def at_zero(train: TrainConfig, name: LossType, weight: float) -> AtZero:
    """A weighted loss where all log-ratios are zero, as when the policy is the reference: the data do not matter there.

    SimPO has no log-ratios: its loss is of the policy's own log-probabilities.
    """
    zeros_2 = torch.zeros(2, dtype=torch.float64)

    def loss(ratios_2: Tensor) -> Tensor:
        return weight * _loss(train, name, ratios_2[None], zeros_2[None]).sum()

    slopes_2, curvatures_2 = jacobian(loss, zeros_2), hessian(loss, zeros_2).diagonal()
    return AtZero(loss(zeros_2).item(), slopes_2.abs().max().item(), curvatures_2.abs().max().item())

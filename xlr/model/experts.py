"""Mixture of experts: the loss that keeps the load of the experts even, and the loads themselves.

Shapes: `R` rows, `T` tokens that enter the model, `L` layers with experts, `E` experts.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from xlr.errors import UserError

_PARAMETERS = ["gate_logits", "num_experts", "top_k", "attention_mask"]


def aux_loss_coef(config: Any, setting: float | Literal["auto"], key: str) -> float:
    """The coefficient of the load-balancing loss; 0 trains without it.

    Args:
        setting: the coefficient, or auto: that of config.json, if its `output_router_logits` is true.
        key: the name of the setting in messages.

    Raises:
        UserError: it is positive, but transformers has no such loss for this model.
    """
    config = config.get_text_config()
    if setting != "auto":
        coefficient = setting
    elif getattr(config, "output_router_logits", False):
        coefficient = getattr(config, "router_aux_loss_coef", 0.0)
    else:
        return 0.0
    if coefficient > 0 and not _has_loss(config):
        raise UserError(
            f"{key}={setting}: models of type {config.model_type} have no load-balancing loss, or no experts, in "
            f"transformers; set {key} to 0"
        )
    return float(coefficient)


def _has_loss(config: Any) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    experts = max(getattr(config, name, None) or 0 for name in ("num_local_experts", "num_experts"))
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return experts > 1 and model_class is not None and _loss_of(model_class) is not None


def _loss_of(model_class: type) -> Callable[..., Tensor] | None:
    """The load-balancing loss that transformers has beside a class of models, if there is one with known parameters."""
    found = getattr(sys.modules[model_class.__module__], "load_balancing_loss_func", None)
    return found if found and list(inspect.signature(found).parameters) == _PARAMETERS else None


def balance(causal_lm: Any, router_logits: Sequence[Tensor], counted_RT: Tensor) -> tuple[Tensor, Tensor]:
    """How evenly the counted tokens of a batch load the experts.

    Args:
        router_logits: of each layer with experts, `(R x T, E)`.

    Returns:
        transformers' load-balancing loss, and the number of tokens of each expert, `(L, E)`. The loss is the number of
        experts times the sum over experts of (share of tokens x mean probability), both over all layers: equation 4
        of Switch Transformers (arXiv:2101.03961), and equal to the experts per token where all loads are even.
    """
    loss_of = _loss_of(type(causal_lm))
    assert loss_of is not None  # `aux_loss_coef` was checked
    experts, per_token = causal_lm.num_experts, causal_lm.num_experts_per_tok
    logits = tuple(one.float() for one in router_logits)  # float32 probabilities, whatever the model's precision
    loss = loss_of(logits, experts, per_token, counted_RT)
    return loss, torch.stack([_loads(one.detach(), per_token, counted_RT) for one in logits])


def _loads(logits: Tensor, per_token: int, counted_RT: Tensor) -> Tensor:
    """The number of counted tokens that choose each expert, `(E,)`."""
    chosen = logits.topk(per_token).indices
    loads_E = logits.new_zeros(logits.shape[-1])
    return loads_E.scatter_add_(0, chosen.flatten(), counted_RT.flatten().float().repeat_interleave(per_token))

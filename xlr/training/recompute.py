"""Which activations the backward pass computes again instead of reading them from memory."""

from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

_MATRIX_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


def recomputation(gradient_checkpointing: Literal[True, "selective"]) -> dict[str, Any]:
    """The arguments of transformers' `gradient_checkpointing_enable`: all of a layer, or only what is cheap."""
    arguments: dict[str, Any] = {"use_reentrant": False}
    if gradient_checkpointing == "selective":
        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
    return arguments


def _keep_products(_context: Any, operation: Any, *_arguments: Any, **_keywords: Any) -> CheckpointPolicy:
    """Keep what a matrix product or an attention kernel gives; norms, activations and rotations are cheap."""
    name = str(operation)
    if operation in _MATRIX_PRODUCTS or "dot_product" in name or "flash_attn" in name:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE

"""The sizes of a model from its config.json alone: no weights are read, and none are allocated."""

import re
from collections import defaultdict
from typing import Any

from xlr.errors import UserError
from xlr.foreign.modelfiles import load_config
from xlr.maths.memory import Shape

_LAYER = re.compile(r"\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.")
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def read_shape(model: str) -> Shape:
    """The sizes of a model: widths from its configuration, parameters counted on torch's meta device.

    Args:
        model: a folder or hub name.

    Raises:
        UserError: the configuration cannot be read, or lacks a size that the formulas need.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(model)
    text = config.get_text_config()
    if missing := [name for name in _NEEDED if not isinstance(getattr(text, name, None), int)]:
        raise UserError(
            f"{model}: config.json ({config.model_type}) has no {', '.join(missing)}, so xlr has no formula for this "
            "model; run a few steps of it on the hardware instead"
        )
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(config)
    layers, experts = _parameters(causal_lm)
    count, embedding = text.num_hidden_layers, causal_lm.get_input_embeddings().weight
    output = causal_lm.get_output_embeddings().weight
    every = next((getattr(text, name) for name in _EXPERTS if getattr(text, name, None)), 1)
    active = getattr(text, "num_experts_per_tok", None) or every
    return Shape(
        text.hidden_size,
        count,
        text.num_attention_heads,
        getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        _width(text, active if every > 1 else 1),
        text.vocab_size,
        output is embedding,
        getattr(text, "head_dim", None),
        layers // count,
        (layers - experts + experts * active // every) // count,
    )


def _parameters(causal_lm: Any) -> tuple[int, int]:
    """The number of parameters in all layers, and how many of these are in experts."""
    by_place: defaultdict[bool, int] = defaultdict(int)
    for name, one in causal_lm.named_parameters():
        if _LAYER.search(name):
            by_place[bool(_EXPERT.search(name))] += one.numel()
    return sum(by_place.values()), by_place[True]


def _width(text: Any, experts: int) -> int:
    """The width of what the MLPs of a layer compute for a token."""
    width = getattr(text, "moe_intermediate_size", None) if experts > 1 else None
    width = width or getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return experts * (max(width) if isinstance(width, list | tuple) else int(width))

"""Loads models, and refuses damaged or incomplete weights."""

from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from xlr.errors import UserError
from xlr.foreign import modelfiles
from xlr.foreign.modelfiles import load_config
from xlr.model.precision import precision
from xlr.records import DType


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """`model.dtype` as a torch type; see `precision`."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision(dtype, device.type == "cuda")]


def load_causal_lm(model: str | Path, dtype: torch.dtype, attn_implementation: str) -> Any:
    """Load a causal language model from safetensors in evaluation mode, on the CPU or partitioned by zero.Init.

    Raises:
        UserError: weights cannot be opened, are missing, or do not match config.json.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, model, dtype, attn_implementation)


def load_reward_model(model: str | Path, dtype: torch.dtype, attn_implementation: str) -> Any:
    """Load a sequence classifier with one output, like `load_causal_lm`.

    Raises:
        UserError: see `load_causal_lm`.
    """
    from transformers import AutoModelForSequenceClassification

    return _load(AutoModelForSequenceClassification, model, dtype, attn_implementation)


def _load(kind: Any, model: str | Path, dtype: torch.dtype, attn_implementation: str) -> Any:
    config = load_config(model)
    modelfiles.require_weights(model)
    try:
        opened: Any = kind.from_pretrained(
            model,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # transformers raises anything for values that are not as it expects
        raise UserError(
            f"{model}: the weights cannot be opened with attn_implementation={attn_implementation} "
            f"({modelfiles.reason(error)}); check that config.json belongs to these weights, or set another "
            "model.attn_implementation"
        ) from error
    found, loaded = opened
    if loaded["missing_keys"] or loaded["mismatched_keys"]:
        names = ", ".join(map(str, sorted({*loaded["missing_keys"], *loaded["mismatched_keys"]}, key=str)[:3]))
        raise UserError(
            f"{model}: weights are missing or their shape differs from config.json: {names}, ...; get the model again"
        )
    return found.eval()


def without_dropout(causal_lm: nn.Module) -> None:
    """Switch dropout off, in training mode too. config.json keeps its values.

    With it, the policy would differ from the reference before the first step, and rewards from those that were scored.
    """
    for module in causal_lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # such as attention_dropout, which attention functions are given
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def require_finite(causal_lm: nn.Module, model: str | Path) -> None:
    """Check that all weights are finite.

    Raises:
        UserError: a weight holds NaN or infinity; names the first one.
    """
    for name, parameter in causal_lm.named_parameters():
        if not parameter.isfinite().all():
            refuse_damaged(model, name)


def refuse_damaged(model: str | Path, name: str) -> NoReturn:
    """Raise the error about a weight that is not finite.

    Raises:
        UserError: always.
    """
    raise UserError(f"{model}: the weight {name} holds NaN or infinity; the file is damaged, or its training diverged")

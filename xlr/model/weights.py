"""Opening a model's weights, and refusing what would poison a run."""

from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from torch import nn

from xlr.config import SHARED_PROMPT
from xlr.errors import UserError
from xlr.model.precision import DType, precision


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """`model.dtype` as torch's type; see `precision`."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision(dtype, device.type == "cuda")]


def load_config(model: str | Path) -> Any:
    """A model's architecture.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{model}: not a model that can be opened ({str(error).strip().splitlines()[0]}); name a Hugging Face "
            "folder with config.json and safetensors weights, or a hub name that this machine can reach"
        ) from error


def load_causal_lm(model: str | Path, dtype: torch.dtype, attn_implementation: str) -> Any:
    """Open a causal language model from safetensors, in evaluation mode, on the CPU or under zero.Init.

    Raises:
        UserError: it cannot be opened.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(model)
    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(
            model,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{model}: the weights cannot be opened with attn_implementation={attn_implementation} "
            f"({str(error).strip().splitlines()[0]})"
        ) from error
    causal_lm, loaded = opened
    if loaded["missing_keys"] or loaded["mismatched_keys"]:
        names = ", ".join(map(str, sorted({*loaded["missing_keys"], *loaded["mismatched_keys"]}, key=str)[:3]))
        raise UserError(f"{model}: weights are missing or of another shape than config.json says: {names}, ...")
    return causal_lm.eval()


def require_finite(causal_lm: nn.Module, model: str | Path) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        UserError: naming the first such tensor.
    """
    for name, parameter in causal_lm.named_parameters():
        if not parameter.isfinite().all():
            refuse_damaged(model, name)


def refuse_damaged(model: str | Path, name: str) -> NoReturn:
    """Say which weight is not finite.

    Raises:
        UserError: always.
    """
    raise UserError(f"{model}: the weight {name} holds NaN or infinity; the file is damaged, or its training diverged")


def default_attention(attn_implementation: str) -> str:
    """The implementation for plain use, such as generation, beside one that only knows packed batches."""
    return "sdpa" if attn_implementation == SHARED_PROMPT else attn_implementation

"""Resolves `model.dtype: auto`."""

from typing import Literal

from xlr.records import DType


def precision(dtype: DType, on_gpus: bool) -> Literal["float32", "bfloat16"]:
    """Precision of weights and arithmetic: `auto` means bfloat16 on GPUs and float32 on CPUs."""
    if dtype == "auto":
        return "bfloat16" if on_gpus else "float32"
    return dtype

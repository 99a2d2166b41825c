"""Settings of torch for computations on GPUs. They change nothing on CPUs."""

import os

import torch

# Batches differ in length, so blocks of fixed sizes leave gaps of several GB between them.
_ALLOCATOR = "expandable_segments:True"


def set_up_gpus() -> None:
    """Set this process up to train or score on GPUs. Call it before the first use of a GPU.

    Attention does not use cuDNN: it makes a plan for each new shape, which takes longer than the attention itself, and
    never frees it. Matrix products in bfloat16 add up in float32, so that their last bits depend less on the batch.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", _ALLOCATOR)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

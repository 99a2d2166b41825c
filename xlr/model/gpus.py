"""Settings of torch for computations on GPUs, which change nothing on CPUs; and how fast a device is."""

import os
import resource
import time

import torch

from xlr.model.caches import keep_on_node

# Batches differ in length, so blocks of fixed sizes leave gaps of several GB between them.
_ALLOCATOR = "expandable_segments:True"

# Peak dense bfloat16 FLOP/s from the vendors' data sheets, by a part of the GPU's name. The first that fits counts.
_PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
}
_CPU_PROBE_SIZE, _GPU_PROBE_SIZE = 1024, 8192


def set_up_gpus() -> None:
    """Set this process up to train or score on GPUs. Call it before the first use of a GPU.

    Attention does not use cuDNN: it makes a plan for each new shape, which takes longer than the attention itself, and
    never frees it. Matrix products in bfloat16 add up in float32, so that their last bits depend less on the batch.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", _ALLOCATOR)
    keep_on_node()
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def peak_memory(on_gpu: bool) -> int:
    """Peak memory of this process in bytes: on its GPU since the peak was reset, or of the host since it began."""
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(device: torch.device) -> float:
    """Peak FLOP/s for MFU: from the data sheet on known GPUs, else the measured rate of a matrix product."""
    size, dtype = _CPU_PROBE_SIZE, torch.float32
    if device.type == "cuda":
        if (known := data_sheet_flops(torch.cuda.get_device_name(device))) is not None:
            return known
        size, dtype = _GPU_PROBE_SIZE, torch.bfloat16
    a = torch.rand(size, size, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        float((a @ a)[0, 0])
        fastest = min(fastest, time.perf_counter() - begun)
    return 2 * size**3 / fastest


def data_sheet_flops(gpu: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a kind of GPU; None if it is not known."""
    return next((flops for part, flops in _PEAK_FLOPS.items() if part in gpu), None)

"""Checks that training ranks meet and reduce, and how fast. Every rank runs it."""

import os
import time
from typing import Any

from xlr.cluster.ranks import Ranks
from xlr.selftest.check import Check

_GPU_FLOATS, _CPU_FLOATS = 1 << 26, 1 << 20  # of the tensor that measures the network
# Bytes a second between GPUs; Ethernet of 100 Gb/s reaches 12e9, InfiniBand of 400 Gb/s 48e9, PCIe 4 about 20e9.
_SLOW_BUS = 20e9


def reduce(name: str, own: Ranks) -> Check:
    """Check that all ranks can all-reduce, as training does, and how fast.

    Args:
        name: begins the name of the check.
    """
    import torch
    import torch.distributed as dist

    from xlr.zero import engine

    begun = time.monotonic()
    device = engine.init_distributed(own)
    ones = torch.ones(1, device=device)
    dist.all_reduce(ones)
    seconds = time.monotonic() - begun
    on_gpus = device.type == "cuda"
    rate = _bus_bytes_a_second(torch.ones(_GPU_FLOATS if on_gpus else _CPU_FLOATS, device=device))
    backend = dist.get_backend()
    engine.close_distributed()
    found = f"{int(ones.item())} tasks met over {backend} in {seconds:.1f} s and reduce at {rate / 1e9:.3g} GB/s"
    if ones.item() != own.world_size:
        return Check(f"{name}collectives", found, "some tasks are missing")
    return Check(f"{name}collectives", found, _remedy() if on_gpus and rate < _SLOW_BUS else "")


def _remedy() -> str:
    if int(os.environ.get("SLURM_NNODES", "1")) > 1:
        return (
            "NCCL does not use the fast network: run with NCCL_DEBUG=INFO, and set NCCL_IB_HCA, NCCL_SOCKET_IFNAME or "
            "FI_PROVIDER in slurm.setup, or bind the network's libraries into the container"
        )
    return "the GPUs reach each other over a slow path: see `nvidia-smi topo -m`, and run with NCCL_DEBUG=INFO"


def _bus_bytes_a_second(tensor: Any) -> float:
    """Bytes that each link carries a second in an all-reduce of this tensor, as nccl-tests count it."""
    import torch.distributed as dist

    ranks = dist.get_world_size()
    dist.all_reduce(tensor)  # opens the connections
    float(tensor[0])  # waits for the GPU
    begun = time.monotonic()
    dist.all_reduce(tensor)
    float(tensor[0])
    return 2 * (ranks - 1) / ranks * tensor.numel() * tensor.element_size() / (time.monotonic() - begun)

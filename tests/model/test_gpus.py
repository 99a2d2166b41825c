"""Settings for GPUs that can be checked without one."""

import os

import pytest
import torch

from xlr.model.gpus import data_sheet_flops, peak_flops, set_up_gpus
from xlr.zero.engine import device_of


def test_attention_avoids_cudnn_and_products_add_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    set_up_gpus()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


def test_the_users_own_allocator_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    set_up_gpus()
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:512"


@pytest.mark.parametrize(("local_rank", "gpus", "index"), [(3, 8, 3), (3, 1, 0), (0, 1, 0), (5, 4, 1)])
def test_a_rank_that_sees_one_gpu_takes_it(local_rank: int, gpus: int, index: int) -> None:
    """Slurm may show each task only its own GPU, which then has the number 0."""
    assert device_of(local_rank, gpus) == torch.device("cuda", index)
    assert device_of(local_rank, 0) == torch.device("cpu")


@pytest.mark.parametrize(
    ("gpu", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GB200", 2250e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_gpu_is_known_by_its_name(gpu: str, flops: float | None) -> None:
    assert data_sheet_flops(gpu) == flops


def test_the_rate_of_this_processor_is_measured() -> None:
    assert 1e9 < peak_flops(torch.device("cpu")) < 1e14

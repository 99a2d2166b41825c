"""The kernels that only GPUs have: attention of all pieces in one call, and logits as float32 sums."""

import pytest
import torch

from benchmarks.gpuplan.kernels import compare_attention, compare_head
from tests.gpu.conftest import DEVICE
from tests.packing.test_varlen import groups_of
from xlr.packing.attention import attention_arguments

pytestmark = pytest.mark.gpu

ROWS = [
    [(1, [1] * 10)],
    [(1, [0]), (300, [1, 0, 2])],  # 0: only a terminator
    [(7, [63, 64, 65, 128, 1, 2, 3, 4, 5, 6])],
    [(1500, [2400, 1, 500]), (64, [64]), (1, [129])],
]


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 64), (32, 8, 128), (9, 3, 64), (4, 4, 96)])
@pytest.mark.parametrize("row", ROWS)
def test_attention_equals_a_dense_mask_in_float32(
    row: list[tuple[int, list[int]]], heads: int, kv_heads: int, size: int
) -> None:
    groups = groups_of(row)
    assert "pieces" in attention_arguments(groups, DEVICE, torch.bfloat16)
    output, cosines = compare_attention(groups, heads, kv_heads, size, DEVICE, torch.bfloat16)
    assert output < 1e-2
    assert min(cosines) > 0.9995


def test_attention_in_float32_is_nearly_exact() -> None:
    output, cosines = compare_attention(groups_of(ROWS[2]), 4, 2, 64, DEVICE, torch.float32)
    assert output < 1e-5
    assert min(cosines) > 1 - 1e-6


def test_logits_are_not_rounded_to_bfloat16() -> None:
    found = compare_head(1000, 1024, 32_000, DEVICE)
    assert found["sd"] < 2e-3 < found["rounded sd"]
    assert found["sum of 500"] < 0.05
    assert found["gradients"] < 1e-2

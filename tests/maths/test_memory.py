"""The memory of a training rank: against an estimate made part by part for Llama3-8B, and by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr.maths.memory import LLAMA3_8B, LLAMA32_1B, Checkpointing, Shape, Zero, peak

CONTEXT_GB = 3.0  # CUDA, NCCL, cuBLAS, fragments: the estimate holds them, the formula does not

# Ranks, checkpointing, frozen reference -> GB a GPU with 8,192 tokens, estimated from the layers' shapes.
ESTIMATED = {
    (8, True, True): 34,
    (8, True, False): 32,
    (4, True, True): 52,
    (4, True, False): 48,
    (16, True, True): 25,
    (16, True, False): 24,
    (8, "selective", True): 61,
    (8, "selective", False): 59,
    (4, "selective", True): 80,
    (4, "selective", False): 76,
    (16, "selective", True): 52,
    (8, False, True): 90,
    (16, False, True): 81,
}


@pytest.mark.parametrize(("ranks", "checkpointing", "frozen"), ESTIMATED)
def test_the_formula_agrees_with_an_independent_estimate(ranks: int, checkpointing: Any, frozen: bool) -> None:
    parts = peak(LLAMA3_8B, ranks, 8192, checkpointing, frozen, 1024, Zero())
    found = sum(parts.values()) / 1e9 + CONTEXT_GB
    assert found == pytest.approx(ESTIMATED[ranks, checkpointing, frozen], rel=0.15)


def test_shapes_have_the_published_numbers_of_parameters() -> None:
    assert pytest.approx(8.03e9, rel=1e-3) == LLAMA3_8B.parameters
    assert pytest.approx(1.236e9, rel=1e-3) == LLAMA32_1B.parameters


def test_what_is_kept_is_16_bytes_a_parameter_without_a_reference() -> None:
    small = Shape(64, 2, 4, 2, 128, 1000, tied=True)
    parts = peak(small, 1, 1, True, False, 1, Zero(bucket=0))
    names = ("weights", "fp32 master", "fp32 Adam moments", "gradients, own shard")
    assert sum(parts[name] for name in names) == 16 * small.parameters
    assert parts["frozen reference"] == 0


@given(
    ranks=st.integers(1, 64), tokens=st.integers(1, 20_000), checkpointing=st.sampled_from([True, "selective", False])
)
def test_more_ranks_take_no_more_and_more_tokens_no_less(ranks: int, tokens: int, checkpointing: Checkpointing) -> None:
    def total(ranks: int, tokens: int, checkpointing: Checkpointing = checkpointing) -> int:
        return sum(peak(LLAMA3_8B, ranks, tokens, checkpointing, True, 1024, Zero()).values())

    assert total(2 * ranks + 1, tokens) <= total(ranks + 1, tokens)
    assert total(ranks, 2 * tokens) >= total(ranks, tokens)
    assert total(ranks, tokens, True) <= total(ranks, tokens, "selective")

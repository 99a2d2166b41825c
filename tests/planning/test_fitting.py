"""The size of micro-batches that xlr chooses, against the formula of the peak tried one size after the other."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr.errors import UserError
from xlr.maths import memory
from xlr.maths.logprobs import CPU_CHUNK_TOKENS, GPU_CHUNK_TOKENS
from xlr.maths.memory import BF16, FP32, LLAMA3_8B
from xlr.settings.trainconfig import TrainConfig
from xlr.zero import fitting


def chosen(ranks: int, gigabytes: float, gpu: bool = True, **settings: Any) -> int:
    train = TrainConfig.model_validate({"micro_batch_tokens": "auto"} | settings)
    chunk, width = (GPU_CHUNK_TOKENS, BF16) if gpu else (CPU_CHUNK_TOKENS, FP32)
    return fitting.sized(train, LLAMA3_8B, ranks, gigabytes * 1e9, width, chunk).tokens_at_once


@given(
    st.integers(1, 64),
    st.floats(1, 2000),
    st.sampled_from([True, False, "selective"]),
    st.sampled_from(["frozen", "cached"]),
    st.booleans(),
)
def test_the_chosen_size_is_the_largest_that_fits(
    ranks: int, gigabytes: float, recomputed: Any, mode: Any, gpu: bool
) -> None:
    train = TrainConfig(gradient_checkpointing=recomputed, reference_mode=mode)
    found = chosen(ranks, gigabytes, gpu, gradient_checkpointing=recomputed, reference_mode=mode)
    chunk, width = (GPU_CHUNK_TOKENS, BF16) if gpu else (CPU_CHUNK_TOKENS, FP32)
    zero = fitting.zero_of(train, width, LLAMA3_8B)
    fits = [512]  # with less, a training would hardly move
    for tokens in (1024, 2048, 4096, 8192, 16384):
        parts = memory.peak(LLAMA3_8B, ranks, tokens, recomputed, mode == "frozen", chunk, zero, width)
        if sum(parts.values()) + (3e9 if gpu else 0.6e9) <= 0.95e9 * gigabytes:
            fits.append(tokens)
    assert found == max(fits)


def test_eight_gpus_of_80_gb_hold_more_than_eight_of_40() -> None:
    assert chosen(8, 40, gradient_checkpointing=True) < chosen(8, 80, gradient_checkpointing=True)
    assert chosen(8, 80, gradient_checkpointing="selective") == pytest.approx(8192, rel=1)


def test_a_given_size_stays() -> None:
    train = TrainConfig(micro_batch_tokens=7)
    assert fitting.sized(train, LLAMA3_8B, 1, 1.0, BF16, GPU_CHUNK_TOKENS) is train
    assert fitting.largest(train, LLAMA3_8B, 1, 24e9, BF16, GPU_CHUNK_TOKENS) is None


def test_a_choice_is_kept_for_its_machines_and_settings(tmp_path: Path) -> None:
    keys = [
        fitting.key_of(stage, TrainConfig(gradient_checkpointing=recomputed), ranks, memory)
        for stage, recomputed, ranks, memory in (
            ("train", False, 8, 80e9),
            ("align", False, 8, 80e9),
            ("train", True, 8, 80e9),
            ("train", False, 16, 80e9),
            ("train", False, 8, 40e9),
        )
    ]
    for number, key in enumerate(keys):
        assert fitting.choice(tmp_path, key) is None
        fitting.keep(tmp_path, key, 512 + number)
    assert [fitting.choice(tmp_path, key) for key in keys] == list(range(512, 517))
    (tmp_path / fitting.FILE).write_text('{"train": "many"}', encoding="utf-8")
    with pytest.raises(UserError, match="delete it; it only keeps sizes"):
        fitting.choice(tmp_path, keys[0])

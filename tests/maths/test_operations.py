"""Operations by formula: against torch's own count, and by hand."""

import math
import random
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from xlr.maths.memory import LLAMA3_8B, Shape, cache_of_token
from xlr.maths.operations import SPREAD, decoding_step, forward, keys_of_answers, longest

SMALL = Shape(32, 3, 4, 2, 48, 128, tied=False, head=16)


def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=SMALL.vocabulary,
        hidden_size=SMALL.hidden,
        intermediate_size=SMALL.intermediate,
        num_hidden_layers=SMALL.layers,
        num_attention_heads=SMALL.heads,
        num_key_value_heads=SMALL.kv_heads,
        head_dim=16,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_operations_of_a_forward_and_a_backward_pass_are_those_that_torch_counts(tokens: int) -> None:
    own = model()
    ids = torch.randint(0, SMALL.vocabulary, (1, tokens))
    with FlopCounterMode(display=False) as counted:
        loss = own(ids).logits.sum()
    expected = forward(SMALL, tokens, tokens * tokens)  # eager attention computes the masked half, too
    # Beside, the angles of rotary embeddings: a product of width head / 2.
    assert counted.get_total_flops() == pytest.approx(expected, rel=0.01)
    with FlopCounterMode(display=False) as counted:
        loss.backward()
    assert counted.get_total_flops() == pytest.approx(2 * expected, rel=0.05)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 5))
def test_keys_of_answers_are_the_sum_over_their_tokens(prompt: int, answer: int, answers: int) -> None:
    # Token i of n sees i keys before it and half of itself, on average over an even split of the diagonal.
    naive = sum(i + 0.5 for i in range(prompt)) + answers * sum(prompt + i + 0.5 for i in range(answer))
    assert keys_of_answers(prompt, answer, answers) == pytest.approx(naive)


def test_the_longest_of_many_responses_is_about_that_of_a_simulation() -> None:
    draw = random.Random(0)
    for rows in (16, 64, 256):
        drawn = [
            max(100 * math.exp(SPREAD * draw.gauss(0, 1) - SPREAD**2 / 2) for _ in range(rows)) for _ in range(300)
        ]
        assert longest(100, rows, 10_000) == pytest.approx(statistics.fmean(drawn), rel=0.1)
    assert longest(100, 1, 10_000) == pytest.approx(100, rel=0.2)
    assert longest(100, 64, 120) == 120


def test_a_decoding_step_of_llama3_8b_is_that_of_an_estimate_made_part_by_part() -> None:
    """benchmarks/sampling_plan.py: 7 ms a step and 0.055 ms a response, 500 tokens each, on an H100."""
    for rows in (256, 1024):
        step = decoding_step(LLAMA3_8B, rows, 500, 2, 0.6 * 989e12, 2.6e12, 0)
        assert step == pytest.approx(7e-3 + 0.055e-3 * rows, rel=0.15)


def test_the_cache_of_a_token_of_llama3_8b_has_its_published_size() -> None:
    assert cache_of_token(LLAMA3_8B) == 128 * 1024

"""All pieces of a row in one call: against a dense mask in float64, FlexAttention, and the loop over pieces."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tests import tiny
from xlr.model import logprobmodel
from xlr.model.logprobmodel import LogprobModel
from xlr.packing import attention, varlen
from xlr.packing.batch import Group, pack
from xlr.records import Example
from xlr.settings.modelconfig import SHARED_PROMPT

HEADS, KEY_HEADS, SIZE = 4, 2, 8
CPU = torch.device("cpu")

# For each group: tokens of the prompt, and tokens of each response that enter the model (0: only a terminator).
SHAPE = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(0, 5), min_size=1, max_size=5)), min_size=1, max_size=4
)
EXAMPLES = [
    Example((5, 6, 7, 8), ((1, 2, 3, 4), (9,), (8, 8, 2))),
    Example((4,), ((3,), (3, 1), (1, 5, 6, 9, 2))),
    Example((2, 3), ((7, 7, 7),)),
]


def groups_of(shape: list[tuple[int, list[int]]]) -> tuple[Group, ...]:
    groups, at = [], 0
    for prompt, responses in shape:
        start, at = at, at + prompt
        ends = []
        for tokens in responses:
            at += tokens
            ends.append(at)
        groups.append(Group(start, start + prompt, tuple(ends)))
    return tuple(groups)


def may_see(groups: tuple[Group, ...]) -> Tensor:
    """Which key each query may see, token by token: `(T, T)`."""
    length = groups[-1].response_ends[-1]
    owner = {}  # token -> its group and its response, -1 for the prompt
    for number, group in enumerate(groups):
        begin = group.prompt_end
        owner |= dict.fromkeys(range(group.start, group.prompt_end), (number, -1))
        for response, end in enumerate(group.response_ends):
            owner |= dict.fromkeys(range(begin, end), (number, response))
            begin = end
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(query + 1):
            same_group = owner[query][0] == owner[key][0]
            allowed[query, key] = same_group and owner[key][1] in (-1, owner[query][1])
    return allowed


def random_row(length: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, heads, length, SIZE, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]


def dense(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over all keys, head by head."""
    outputs = []
    for head in range(HEADS):
        own_key, own_value = key[0, head * KEY_HEADS // HEADS], value[0, head * KEY_HEADS // HEADS]
        logits = (query[0, head] @ own_key.T / math.sqrt(SIZE)).masked_fill(~allowed, -math.inf)
        outputs.append(logits.softmax(-1) @ own_value)
    return torch.stack(outputs, 1)[None]


@settings(max_examples=60, deadline=None)
@given(SHAPE, st.integers(0, 2**31))
def test_values_and_gradients_equal_those_of_a_dense_mask(shape: list[tuple[int, list[int]]], seed: int) -> None:
    groups = groups_of(shape)
    row = random_row(groups[-1].response_ends[-1], seed)
    expected = dense(*row, may_see(groups))
    found = varlen.attend(*row, varlen.pieces(groups, CPU), None)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gradients = [torch.autograd.grad((output * weight).sum(), row) for output in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(SHAPE, st.integers(0, 2**31))
def test_values_equal_those_of_the_loop_and_of_flex_attention(shape: list[tuple[int, list[int]]], seed: int) -> None:
    groups = groups_of(shape)
    row = [tensor.detach().float() for tensor in random_row(groups[-1].response_ends[-1], seed)]
    found = varlen.attend(*row, varlen.pieces(groups, CPU), None)
    masks = attention.response_masks(groups, CPU)
    loop, _ = attention.shared_prompt_attention(torch.nn.Identity(), *row, None, groups=groups, masks=masks)
    assert torch.allclose(found, loop, rtol=1e-5, atol=1e-6)

    allowed = may_see(groups)
    length = len(allowed)
    block_mask = create_block_mask(lambda _b, _h, query, key: allowed[query, key], None, None, length, length, "cpu")
    flex = flex_attention(*row, block_mask=block_mask, enable_gqa=True)
    assert isinstance(flex, Tensor)
    assert torch.allclose(found, flex.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_pieces_by_hand() -> None:
    where = varlen.pieces((Group(0, 2, (3, 3, 5)), Group(5, 6, (6,))), CPU)
    assert where.keys_K.tolist() == [0, 1, 2, 0, 1, 3, 4, 5]
    assert where.query_ends.tolist() == [0, 3, 5, 6]
    assert where.key_ends.tolist() == [0, 3, 7, 8]
    assert (where.most_queries, where.most_keys) == (3, 4)


@pytest.fixture
def in_one_call(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compute on this CPU as on a GPU, with the plain loop as kernel. Collects the number of pieces of each call."""
    calls: list[int] = []
    plain = varlen.plain_varlen

    def counted(*arguments: Any, **options: Any) -> Tensor:
        calls.append(len(arguments[3]) - 1)
        return plain(*arguments, **options)

    def as_on_gpus(groups: tuple[Group, ...], device: torch.device, _dtype: torch.dtype) -> dict[str, object]:
        return {"groups": groups, "pieces": varlen.pieces(groups, device)}

    monkeypatch.setattr(varlen, "plain_varlen", counted)
    monkeypatch.setattr(logprobmodel, "attention_arguments", as_on_gpus)
    return calls


def test_each_layer_makes_one_call_for_all_pieces(in_one_call: list[int]) -> None:
    causal_lm = tiny.make_model(50, layers=3)
    causal_lm.set_attn_implementation(SHARED_PROMPT)
    LogprobModel(causal_lm)(pack(EXAMPLES))
    pieces = 2 + 3 + 1  # the second response of the first prompt is only a terminator
    assert in_one_call == [pieces] * 3


def test_the_model_computes_the_same_either_way(request: pytest.FixtureRequest) -> None:
    causal_lm = tiny.make_model(50, layers=2)
    causal_lm.set_attn_implementation(SHARED_PROMPT)
    model = LogprobModel(causal_lm)

    def computed() -> tuple[Tensor, dict[str, Tensor]]:
        causal_lm.zero_grad()
        logps_S = model(pack(EXAMPLES))
        (logps_S * torch.linspace(-1, 2, len(logps_S))).sum().backward()
        gradients = {name: p.grad.clone() for name, p in causal_lm.named_parameters() if p.grad is not None}
        return logps_S.detach(), gradients

    expected, expected_gradients = computed()
    request.getfixturevalue("in_one_call")
    found, gradients = computed()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    assert all(torch.allclose(gradients[name], expected_gradients[name], rtol=1e-4, atol=1e-5) for name in gradients)


@pytest.mark.parametrize(
    ("device", "dtype", "how"),
    [
        ("cpu", torch.float32, "masks"),
        ("cpu", torch.bfloat16, "masks"),
        ("cuda", torch.float32, "masks"),
        ("cuda", torch.bfloat16, "pieces"),
    ],
)
def test_only_gpus_in_low_precision_make_one_call(
    device: str, dtype: torch.dtype, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "pieces", lambda groups, device: "pieces")
    monkeypatch.setattr(attention, "response_masks", lambda groups, device: "masks")
    groups = groups_of([(3, [2, 2])])
    assert attention.attention_arguments(groups, torch.device(device), dtype) == {"groups": groups, how: how}

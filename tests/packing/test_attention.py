import copy
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from xlr.chat.encoding import ChatEncoder
from xlr.errors import UserError
from xlr.model import logprobmodel
from xlr.model.logprobmodel import LogprobModel
from xlr.packing.attention import shared_prompt_attention
from xlr.packing.batch import concatenate, pack, pad
from xlr.packing.layout import Layout, batch_shape, layout
from xlr.records import Example
from xlr.settings.modelconfig import SHARED_PROMPT

VOCAB = 50
LAYOUTS = {SHARED_PROMPT: pack, "sdpa": pad, "eager": pad}
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
LAYOUT = pytest.mark.parametrize("attention", list(LAYOUTS))
moderate = settings(max_examples=12, deadline=None)


@cache
def models(tied: bool, vocab_size: int = VOCAB, seed: int = 0):
    """A model that returns log-probabilities, and a plain float64 copy that returns logits."""
    causal_lm = tiny.make_model(vocab_size, seed, tied)
    double = copy.deepcopy(causal_lm).double()
    double.set_attn_implementation("eager")
    return LogprobModel(causal_lm), double


def logps(model: LogprobModel, examples, attention: str) -> torch.Tensor:
    model.causal_lm.set_attn_implementation(attention)
    return model(LAYOUTS[attention](examples))


@torch.no_grad()
def oracle(double, examples) -> list[float]:
    """Expected log-probabilities: one plain forward pass per prompt and response, summed token by token."""
    values = []
    for example in examples:
        for response in example.responses:
            rows = double(torch.tensor([[*example.prompt, *response]])).logits[0].tolist()
            total = 0.0
            for i, token in enumerate(response):
                row = rows[len(example.prompt) + i - 1]
                top = max(row)
                total += row[token] - top - math.log(math.fsum(math.exp(x - top) for x in row))
            values.append(total)
    return values


TOKENS = st.integers(0, VOCAB - 1)
EXAMPLE = st.builds(
    Example,
    st.lists(TOKENS, min_size=1, max_size=6).map(tuple),
    st.lists(st.lists(TOKENS, min_size=1, max_size=5).map(tuple), min_size=1, max_size=4).map(tuple),
)
EXAMPLES = st.lists(EXAMPLE, min_size=1, max_size=4)


def random_examples(shape, seed: int = 0) -> list[Example]:
    """Random examples. `shape` holds the number of prompt tokens and of each response's tokens, per example."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCAB, (n,), generator=generator).tolist())

    return [Example(tokens(prompt), tuple(map(tokens, responses))) for prompt, responses in shape]


# One to four responses; a one-token prompt; responses that are only a terminator: first, middle, last, single and all.
SHAPES = {
    "single": [(5, [4])],
    "pair": [(12, [9, 7])],
    "four responses": [(6, [3, 11, 2, 8])],
    "several examples": [(5, [4, 6]), (17, [3]), (2, [9, 9, 9]), (8, [2, 3, 4, 5])],
    "terminator first": [(5, [1, 4])],
    "terminator in the middle": [(5, [4, 1, 6, 1, 2]), (3, [2, 2])],
    "terminator last": [(5, [4, 1]), (3, [2])],
    "only a terminator": [(5, [1])],
    "only terminators": [(5, [1, 1, 1]), (4, [1]), (3, [2, 1])],
    "prompts of one token": [(1, [3, 4, 1]), (1, [1]), (1, [2])],
    "long": [(150, [60, 90]), (40, [120])],
}
SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


@SHAPE
@TIED
@LAYOUT
@torch.no_grad()
def test_each_layout_equals_one_sequence_at_a_time_in_float64(attention, tied, shape):
    model, double = models(tied)
    examples = random_examples(shape)
    assert logps(model, examples, attention).tolist() == pytest.approx(oracle(double, examples), rel=1e-4)


@TIED
@moderate
@given(examples=EXAMPLES)
@torch.no_grad()
def test_all_layouts_equal_one_sequence_at_a_time_on_any_batch(tied, examples):
    model, double = models(tied)
    expected = oracle(double, examples)
    for attention in LAYOUTS:
        assert logps(model, examples, attention).tolist() == pytest.approx(expected, rel=1e-4)


MESSAGES = [
    ("Why do leaves change colour?", ["Chlorophyll fades.", "They get cold.", "No idea, sorry!"]),
    ("¿Por qué cambian las hojas en otoño?", ["Porque la clorofila desaparece.", ""]),
    ("Почему небо голубое?", ["Рассеяние света.", "Не знаю."]),
    ("为什么天是蓝的？", ["因为光的散射。"]),
]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_chats_in_many_languages_equal_one_sequence_at_a_time(family):
    encoder = ChatEncoder(tiny.make_tokenizer(family), family)
    examples = [Example(encoder.prompt(user), tuple(map(encoder.response, answers))) for user, answers in MESSAGES]
    model, double = models(tied=False, vocab_size=len(encoder.tokenizer))
    expected = oracle(double, examples)
    assert len(expected) == 8
    for attention in LAYOUTS:
        assert logps(model, examples, attention).tolist() == pytest.approx(expected, rel=1e-4)


@LAYOUT
@moderate
@given(examples=EXAMPLES)
@torch.no_grad()
def test_a_value_does_not_depend_on_what_else_is_in_the_batch(attention, examples):
    model, _ = models(tied=True)
    together = logps(model, examples, attention).tolist()
    alone = [
        logps(model, [Example(example.prompt, (response,))], attention).item()
        for example in examples
        for response in example.responses
    ]
    assert together == pytest.approx(alone, rel=1e-5)
    reverse = [Example(example.prompt, example.responses[::-1]) for example in examples[::-1]]
    assert logps(model, reverse, attention).tolist()[::-1] == pytest.approx(together, rel=1e-5)


@LAYOUT
@torch.no_grad()
def test_changing_one_response_does_not_affect_the_others(attention):
    model, _ = models(tied=True)
    (example,) = random_examples([(6, [5, 5, 5])])
    before = logps(model, [example], attention).tolist()
    for changed in range(3):
        responses = list(example.responses)
        responses[changed] = (7, 7, 7, 7, 7)
        after = logps(model, [Example(example.prompt, tuple(responses))], attention).tolist()
        for i in range(3):
            assert (after[i] == pytest.approx(before[i], rel=1e-6)) == (i != changed)


def gradients(model: LogprobModel, examples, attention: str) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logps_S = logps(model, examples, attention)
    (logps_S * torch.linspace(-1, 2, len(logps_S))).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@SHAPE
@TIED
def test_gradients_of_the_packed_batch_equal_those_of_the_padded(tied, shape):
    model, _ = models(tied)
    examples = random_examples(shape)
    packed = gradients(model, examples, SHARED_PROMPT)
    for attention in ("sdpa", "eager"):
        for name, grad in gradients(model, examples, attention).items():
            assert (packed[name] - grad).abs().max() <= 1e-5 * grad.abs().max(), name


@TIED
def test_gradients_equal_those_of_the_float64_model(tied):
    model, double = models(tied)
    examples = random_examples(SHAPES["several examples"])
    weights = iter(torch.linspace(-1, 2, 10, dtype=torch.float64))
    total = 0.0
    for example in examples:
        for response in example.responses:
            logits_TV = double(torch.tensor([[*example.prompt, *response]])).logits[0]
            predicted = logits_TV[len(example.prompt) - 1 : -1].log_softmax(-1)
            total = total + next(weights) * sum(predicted[i, token] for i, token in enumerate(response))
    double.zero_grad()
    total.backward()
    expected = {f"causal_lm.{name}": parameter.grad for name, parameter in double.named_parameters()}
    actual = gradients(model, examples, SHARED_PROMPT)
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        assert (actual[name] - grad).abs().max() <= 1e-4 * grad.abs().max(), name


@TIED
def test_the_wrapped_model_is_unchanged_and_shares_its_weights(tied):
    causal_lm = tiny.make_model(VOCAB, tied=tied)
    names, tokens = list(dict(causal_lm.named_parameters())), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        logits_RTV = causal_lm(tokens).logits
        model = LogprobModel(causal_lm)
        assert torch.equal(causal_lm(tokens).logits, logits_RTV)
    assert [name for name, _ in model.named_parameters()] == [f"causal_lm.{name}" for name in names]
    embedding = causal_lm.get_input_embeddings()
    assert model.head.weight is causal_lm.get_output_embeddings().weight
    assert (model.head.weight is embedding.weight) == tied


@moderate
@given(EXAMPLES)
def test_a_packed_batch_holds_each_prompt_once_and_no_padding(examples):
    batch = pack(examples)
    expected = [
        token
        for example in examples
        for part in (example.prompt, *(response[:-1] for response in example.responses))
        for token in part
    ]
    assert batch.input_ids_RT.tolist() == [expected]
    assert batch.input_ids_RT.shape[1] == sum(example.num_tokens for example in examples)


@moderate
@given(EXAMPLES)
def test_labels_are_all_response_tokens_with_terminators_in_order(examples):
    responses = [response for example in examples for response in example.responses]
    for batch in (pack(examples), pad(examples)):
        assert batch.labels_N.tolist() == [token for response in responses for token in response]
        assert batch.lengths_S.tolist() == [len(response) for response in responses]
        assert len(batch.predict_N) == len(batch.labels_N)


def test_packing_by_hand():
    batch = pack([Example((1, 2), ((3, 4, 9), (9,))), Example((5,), ((6, 9),))])
    assert batch.input_ids_RT.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch.position_ids_RT.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.predict_N.tolist() == [1, 2, 3, 1, 4, 5]
    assert batch.labels_N.tolist() == [3, 4, 9, 9, 6, 9]
    assert batch.lengths_S.tolist() == [3, 1, 2]


def test_padding_by_hand():
    batch = pad([Example((1, 2), ((3, 4, 9), (9,))), Example((5,), ((6, 9),))])
    assert batch.input_ids_RT.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0], [5, 6, 0, 0]]
    assert batch.position_ids_RT.tolist() == [[0, 1, 2, 3]] * 3
    assert batch.predict_N.tolist() == [1, 2, 3, 5, 8, 9]
    assert batch.labels_N.tolist() == [3, 4, 9, 9, 6, 9]
    assert batch.lengths_S.tolist() == [3, 1, 2]


def test_a_batch_moves_to_a_device_as_a_whole():
    batch = pack(random_examples(SHAPES["pair"]))
    moved = batch.to(torch.device("meta"))
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert moved.groups == batch.groups


def test_attention_without_groups_is_refused():
    states = torch.zeros(1, 2, 4, 8)
    with pytest.raises(UserError, match=r"how a row is packed.*set model\.attn_implementation to sdpa"):
        shared_prompt_attention(torch.nn.Identity(), states, states, states, None)


def test_a_sliding_window_shorter_than_the_batch_is_refused():
    states, groups = torch.zeros(1, 2, 4, 8), pack([Example((1, 2), ((3, 4, 9),))]).groups
    with pytest.raises(UserError, match="sliding window of 3"):
        shared_prompt_attention(torch.nn.Identity(), states, states, states, None, groups=groups, sliding_window=3)
    output, _ = shared_prompt_attention(
        torch.nn.Identity(), states, states, states, None, groups=groups, sliding_window=4
    )
    assert output.shape == (1, 4, 2, 8)


def test_whole_sequences_on_one_row_give_the_log_probabilities_of_padded_rows() -> None:
    """Tests the layout for flash attention with an implementation that finds sequences by their positions."""
    model = LogprobModel(tiny.make_model(600, seed=3))
    model.causal_lm.set_attn_implementation("sdpa")
    examples = [
        Example((1, 2, 3, 4), ((5, 6, 7), (8, 9), (10,))),
        Example((11,), ((12, 13, 14, 15, 16), (17,))),
    ]
    row = concatenate(examples)
    assert row.input_ids_RT.tolist() == [
        [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 8, 1, 2, 3, 4, 11, 12, 13, 14, 15, 11],
    ]
    lengths, rows = batch_shape(examples, "flash_attention_2")
    assert (sum(lengths), rows) == (row.input_ids_RT.numel(), None)
    starts = (row.position_ids_RT[0] == 0).nonzero().squeeze(-1).tolist()
    told = logprobmodel._attention_arguments(row, torch.float32)
    assert told["cu_seq_lens_q"].tolist() == [*starts, row.input_ids_RT.numel()]
    assert told["cu_seq_lens_q"].dtype == torch.int32
    assert told["max_length_k"] == 6
    with torch.no_grad():
        padded_S = model(pad(examples))
        packed_S = model(replace(row, sequence_lengths_S=None))
    assert torch.allclose(packed_S, padded_S, atol=1e-5)


def test_flash_attention_gets_whole_sequences_and_others_get_padded_rows() -> None:
    assert layout("flash_attention_2") is layout("kernels-community/flash-attn3") is Layout.SEQUENCES
    assert layout("sdpa") is layout("eager") is Layout.PADDED

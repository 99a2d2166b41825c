import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from xlr.maths.logprobs import PLAIN, LogitShape, sum_per_response, token_logps

CHUNKS = [1, 2, 3, 7, 100]  # for 7 tokens: smaller, a divisor, equal and larger
# Cohere and Falcon H1 multiply their logits, Granite divides them, Gemma 2 caps them.
SHAPES = [LogitShape(0.0625), LogitShape(1 / 16), LogitShape(cap=30.0), LogitShape(3.0, 2.0), LogitShape(0.5, 0.7)]


def shaped(logit: float, shape: LogitShape) -> float:
    logit *= shape.scale
    return logit if shape.cap is None else shape.cap * math.tanh(logit / shape.cap)


def oracle_token_logps(hidden, weight, labels, shape=PLAIN) -> list[float]:
    """log softmax(h W^T)[label], one number at a time; takes nested lists."""
    result = []
    for h, label in zip(hidden, labels, strict=True):
        logits = [shaped(math.fsum(a * b for a, b in zip(h, row, strict=True)), shape) for row in weight]
        top = max(logits)
        result.append(logits[label] - top - math.log(math.fsum(math.exp(x - top) for x in logits)))
    return result


def problem(seed: int, tokens: int = 7, width: int = 5, vocab: int = 11, scale: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = scale * torch.randn(tokens, width, generator=generator)
    weight_VD = torch.randn(vocab, width, generator=generator)
    labels_N = torch.randint(vocab, (tokens,), generator=generator)
    return hidden_ND, weight_VD, labels_N


def gradients(function, hidden_ND, weight_VD, grad_N):
    hidden_ND, weight_VD = hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
    function(hidden_ND, weight_VD).backward(grad_N)
    return hidden_ND.grad, weight_VD.grad


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    tokens=st.integers(1, 9),
    width=st.integers(1, 6),
    vocab=st.integers(1, 12),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    chunk_tokens=st.integers(1, 12),
)
def test_token_logps_equal_a_float64_loop(seed, tokens, width, vocab, scale, chunk_tokens):
    hidden_ND, weight_VD, labels_N = problem(seed, tokens, width, vocab, scale)
    expected = oracle_token_logps(hidden_ND.tolist(), weight_VD.tolist(), labels_N.tolist())
    logps_N = token_logps(hidden_ND, weight_VD, labels_N, chunk_tokens)
    assert logps_N.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_token_logps_by_hand():
    logps_N = token_logps(torch.tensor([[1.0], [0.0]]), torch.tensor([[math.log(3)], [0.0]]), torch.tensor([0, 1]))
    assert logps_N.tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 2)], rel=1e-6)


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_values_and_gradients_do_not_depend_on_the_chunk_size(chunk_tokens):
    hidden_ND, weight_VD, labels_N = problem(1)
    grad_N = torch.linspace(-1, 2, 7)
    whole = token_logps(hidden_ND, weight_VD, labels_N, 7)
    assert torch.allclose(token_logps(hidden_ND, weight_VD, labels_N, chunk_tokens), whole, rtol=1e-6, atol=1e-6)
    expected = gradients(lambda h, w: token_logps(h, w, labels_N, 7), hidden_ND, weight_VD, grad_N)
    actual = gradients(lambda h, w: token_logps(h, w, labels_N, chunk_tokens), hidden_ND, weight_VD, grad_N)
    for a, b in zip(actual, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [PLAIN, *SHAPES])
@pytest.mark.parametrize("chunk_tokens", CHUNKS)
@pytest.mark.parametrize("seed", range(4))
def test_gradients_equal_autograd_through_all_logits(seed, chunk_tokens, shape):
    hidden_ND, weight_VD, labels_N = problem(seed)
    grad_N = torch.randn(7, generator=torch.Generator().manual_seed(seed + 100))

    def unchunked(h, w):
        logits_NV = shape.scale * (h.double() @ w.double().T)
        if shape.cap is not None:
            logits_NV = shape.cap * torch.tanh(logits_NV / shape.cap)
        return torch.log_softmax(logits_NV, -1).gather(-1, labels_N[:, None]).squeeze(-1)

    expected = gradients(unchunked, hidden_ND, weight_VD, grad_N)
    actual = gradients(lambda h, w: token_logps(h, w, labels_N, chunk_tokens, shape), hidden_ND, weight_VD, grad_N)
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_gradients_equal_finite_differences_of_the_loop(chunk_tokens):
    hidden_ND, weight_VD, labels_N = problem(3, width=2, vocab=4)
    hidden, weight, labels = hidden_ND.tolist(), weight_VD.tolist(), labels_N.tolist()
    grad_N = [0.5, -1.0, 2.0, 0.0, 1.0, 1.5, -0.25]

    def total() -> float:
        return sum(g * logp for g, logp in zip(grad_N, oracle_token_logps(hidden, weight, labels), strict=True))

    def slopes(matrix):
        """d total / d entry by central differences, entry by entry."""
        result, step = [], 1e-5
        for row in matrix:
            for j, value in enumerate(row):
                row[j] = value + step
                above = total()
                row[j] = value - step
                result.append((above - total()) / (2 * step))
                row[j] = value
        return result

    actual = gradients(
        lambda h, w: token_logps(h, w, labels_N, chunk_tokens), hidden_ND, weight_VD, torch.tensor(grad_N)
    )
    for grad, matrix in zip(actual, (hidden, weight), strict=True):
        assert grad.flatten().tolist() == pytest.approx(slopes(matrix), rel=1e-5, abs=1e-5)


def test_an_untrained_weight_gets_no_gradient():
    hidden_ND, weight_VD, labels_N = problem(0)
    hidden_ND.requires_grad_()
    token_logps(hidden_ND, weight_VD, labels_N, 3).sum().backward()
    assert hidden_ND.grad.isfinite().all()
    assert weight_VD.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_float32_and_gradients_keep_the_dtype(dtype):
    hidden_ND, weight_VD, labels_N = problem(0)
    hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    assert token_logps(hidden_ND, weight_VD, labels_N).dtype == torch.float32
    for grad in gradients(lambda h, w: token_logps(h, w, labels_N, 2), hidden_ND, weight_VD, torch.ones(7)):
        assert grad.dtype == dtype


def test_huge_logits_give_finite_values_and_gradients():
    hidden_ND, weight_VD, labels_N = problem(0, scale=1e5)
    assert token_logps(hidden_ND, weight_VD, labels_N).isfinite().all()
    for grad in gradients(lambda h, w: token_logps(h, w, labels_N, 2), hidden_ND, weight_VD, torch.ones(7)):
        assert grad.isfinite().all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 2**32))
def test_sum_per_response_equals_a_loop(lengths, seed):
    logps_N = -torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed)) * 10
    values, expected = iter(logps_N.tolist()), []
    for length in lengths:
        total = 0.0
        for _ in range(length):
            total += next(values)
        expected.append(total)
    assert sum_per_response(logps_N, torch.tensor(lengths)).tolist() == pytest.approx(expected, rel=1e-5)


def test_responses_of_one_token_are_their_own_sum():
    logps_N = torch.tensor([-1.0, -2.0, -3.0])
    assert sum_per_response(logps_N, torch.tensor([1, 1, 1])).tolist() == [-1.0, -2.0, -3.0]
    assert sum_per_response(logps_N, torch.tensor([2, 1])).tolist() == [-3.0, -3.0]


def test_each_token_receives_the_gradient_of_its_own_response():
    logps_N = torch.zeros(4, requires_grad=True)
    sum_per_response(logps_N, torch.tensor([1, 3])).backward(torch.tensor([2.0, -5.0]))
    assert logps_N.grad.tolist() == [2.0, -5.0, -5.0, -5.0]


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of any operation's result."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_no_tensor_is_larger_than_a_chunk_of_logits_forward_or_backward():
    tokens, vocab, chunk = 600, 2000, 16
    hidden_ND, weight_VD, labels_N = problem(3, tokens, width=4, vocab=vocab)
    with LargestTensor() as seen:
        gradients(lambda h, w: token_logps(h, w, labels_N, chunk), hidden_ND, weight_VD, torch.ones(tokens))
    assert seen.elements == chunk * vocab
    with LargestTensor() as seen:
        gradients(lambda h, w: token_logps(h, w, labels_N, tokens), hidden_ND, weight_VD, torch.ones(tokens))
    assert seen.elements == tokens * vocab


def test_the_weights_gradient_of_many_chunks_is_added_in_float32():
    """In bfloat16, small chunks would be lost beside the sum of the earlier ones."""
    hidden_ND, weight_VD, labels_N = (
        value.bfloat16() if value.is_floating_point() else value for value in problem(3, 4096)
    )
    grad_N = torch.ones(4096)
    exact = gradients(lambda h, w: token_logps(h, w, labels_N, 4096), hidden_ND.double(), weight_VD.double(), grad_N)[1]
    whole, chunked = (
        gradients(lambda h, w, chunk=chunk: token_logps(h, w, labels_N, chunk), hidden_ND, weight_VD, grad_N)[1]
        for chunk in (4096, 16)
    )
    assert chunked.dtype == torch.bfloat16
    errors = [((found.double() - exact).abs().max() / exact.abs().max()).item() for found in (whole, chunked)]
    assert errors[1] <= max(2 * errors[0], 4e-3)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    vocab=st.integers(1, 12),
    spread=st.sampled_from([0.1, 1.0, 10.0]),
    shape=st.sampled_from(SHAPES),
    chunk_tokens=st.integers(1, 9),
)
def test_scaled_and_capped_logits_equal_a_float64_loop(seed, vocab, spread, shape, chunk_tokens):
    hidden_ND, weight_VD, labels_N = problem(seed, vocab=vocab, scale=spread)
    expected = oracle_token_logps(hidden_ND.tolist(), weight_VD.tolist(), labels_N.tolist(), shape)
    logps_N = token_logps(hidden_ND, weight_VD, labels_N, chunk_tokens, shape)
    assert logps_N.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)

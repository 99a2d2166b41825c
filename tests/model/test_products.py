"""Matrix products: close to float64 in every layout that autograd uses, and identical for any number of threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import profile

from xlr.model.products import compute_repeatably

SIZES = st.sampled_from([0, 1, 3, 64, 129, 300])


@pytest.fixture(autouse=True)
def prepared() -> None:
    if compute_repeatably() is None:
        pytest.skip("this CPU or this build of torch has no oneDNN products with AVX-512; torch's own are used")


def matrix(rows: int, columns: int, transposed: bool, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (columns, rows) if transposed else (rows, columns)
    values = torch.randn(shape, generator=generator)
    return values.t() if transposed else values


@settings(deadline=None, max_examples=60)
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_equals_a_float64_product(
    m: int, k: int, n: int, left_transposed: bool, right_transposed: bool, seed: int
) -> None:
    left, right = matrix(m, k, left_transposed, seed), matrix(k, n, right_transposed, seed + 1)
    product = left @ right
    assert product.shape == (m, n)
    torch.testing.assert_close(product.double(), left.double() @ right.double(), rtol=1e-4, atol=1e-4)


def test_slices_and_columns_of_larger_tensors() -> None:
    whole = torch.randn(400, 500)
    left, right = whole[7:300:2, 10:410], whole[:, 100:300]
    torch.testing.assert_close((left @ right).double(), left.double() @ right.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_other_dtypes_use_torchs_kernel(dtype: torch.dtype) -> None:
    left, right = torch.ones(128, 128, dtype=dtype), torch.full((128, 128), 2, dtype=dtype)
    assert torch.equal(left @ right, torch.full((128, 128), 256, dtype=dtype))


def test_large_products_use_onednn_forward_and_backward() -> None:
    inputs, weight = torch.randn(2, 128, 96, requires_grad=True), torch.randn(160, 96, requires_grad=True)
    with profile() as recorded:
        torch.nn.functional.linear(inputs, weight).square().sum().backward()
    names = [event.name for event in recorded.events()]
    assert names.count("mkldnn::_linear_pointwise") == 3
    outputs = inputs.detach().double() @ weight.detach().double().T
    expected = 2 * outputs.flatten(0, 1).T @ inputs.detach().double().flatten(0, 1)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(300, 576, 1536), (1536, 300, 576), (31, 576, 192), (256, 576, 4096)])
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    threads = torch.get_num_threads()
    try:
        for left_transposed in (False, True):
            left, right = matrix(m, k, left_transposed, 1), matrix(k, n, True, 2)
            torch.set_num_threads(1)
            alone = left @ right
            torch.set_num_threads(2)
            assert all(torch.equal(left @ right, alone) for _ in range(5))
    finally:
        torch.set_num_threads(threads)

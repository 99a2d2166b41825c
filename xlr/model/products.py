"""Fast, reproducible float32 matrix products on CPUs.

By default torch computes them with MKL, which uses AVX-512 only on Intel processors. oneDNN, which torch also contains,
uses it on all processors and is twice as fast on an AMD EPYC (benchmarks/README.md). The results are the same to the
bit for any number of threads.
"""

import functools
import os
import warnings

import torch
from torch import Tensor

# For products with fewer multiplications MKL is faster, because it has less overhead per call.
_LARGE = 1 << 20


@functools.cache
def compute_repeatably() -> torch.library.Library | None:
    """Set this process up for reproducible products. Call it before the first matrix product.

    MKL is set to give the same bits on any number of threads, at no cost in speed. oneDNN always does. The returned
    library is cached here, so callers can ignore it.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a kernel is replaced, which is intended
        library.impl("mm", _mm, "CPU")
    return library


def _mm(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """`left @ right`. Backward passes use it too, because autograd calls the registered kernel."""
    rows, columns = left_MK.shape[0], right_KN.shape[1]
    if left_MK.dtype is torch.float32 and rows * columns * left_MK.shape[1] >= _LARGE:
        return torch.ops.mkldnn._linear_pointwise.default(left_MK, right_KN.t(), None, "none", [], "")
    # mm.out is a separate operator, which still uses torch's own kernel.
    return torch.ops.aten.mm.out(left_MK, right_KN, out=left_MK.new_empty(rows, columns))

"""Matrix products on CPUs: at the processor's own rate, and the same bits whatever the number of threads.

torch takes float32 products from MKL, which uses AVX-512 on its maker's processors alone. oneDNN, which torch brings
too, uses it on all: on an AMD EPYC it is twice as fast (benchmarks/README.md).
"""

import functools
import os
import warnings

import torch
from torch import Tensor

# Below this many multiplications MKL's lower cost a call wins.
_LARGE = 1 << 20


@functools.cache
def compute_repeatably() -> torch.library.Library | None:
    """Prepare this process, before its first matrix product; the caller need not keep what is returned.

    MKL is told to give the same bits on any number of threads, which costs it no speed; oneDNN does so by itself.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced is the purpose
        library.impl("mm", _mm, "CPU")
    return library


def _mm(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """`left @ right`; autograd, which stands above the kernels, comes here for its products as well."""
    rows, columns = left_MK.shape[0], right_KN.shape[1]
    if left_MK.dtype is torch.float32 and rows * columns * left_MK.shape[1] >= _LARGE:
        return torch.ops.mkldnn._linear_pointwise.default(left_MK, right_KN.t(), None, "none", [], "")
    # Another operator, and so still torch's own kernel.
    return torch.ops.aten.mm.out(left_MK, right_KN, out=left_MK.new_empty(rows, columns))

"""Liger's kernels in tests: on the GPU if there is one, else on the CPU in Triton's interpreter.

The interpreter lacks three things that the kernels use. Scalars are Python numbers in it, but float32 in a compiled
kernel; it does not know functions of CUDA's libdevice; and it computes with the bits of bfloat16 as with integers, and
cuts numbers off where a GPU rounds.
"""

import os
from typing import Any

import torch

from tests.conftest import missing, required

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def require_kernels() -> None:
    """Make Liger's kernels run here, or skip the test (fail it if XLR_REQUIRE_REAL=1)."""
    required("triton")
    if DEVICE.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            missing("Triton's interpreter is off, and torch sees no GPU")
        _complete_interpreter()
    required("liger_kernel")


def _complete_interpreter() -> None:
    """Before liger_kernel is imported: add what the interpreter lacks."""
    import numpy as np
    import triton.language as tl
    from triton.language.extra import libdevice
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt
    if convert.__module__ == __name__:
        return

    def with_floats(argument: object) -> object:
        if isinstance(argument, float):
            return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)
        return convert(argument)

    builder = interpreter.InterpreterBuilder
    compute, cast = builder.binary_op, builder.cast_impl

    def with_bfloat16(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if left.dtype.scalar != tl.bfloat16:
            return compute(self, left, right, operation)
        wide = (self.cast_impl(side, tl.float32) for side in (left, right))
        return self.cast_impl(compute(self, *wide, operation), tl.bfloat16)

    def rounded(self: Any, number: Any, to: Any) -> Any:
        if (number.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, number, to)
        bits = torch.from_numpy(np.array(number.data, np.float32)).bfloat16().view(torch.uint16)
        return interpreter.TensorHandle(bits.numpy(), tl.bfloat16)

    builder.binary_op, builder.cast_impl = with_bfloat16, rounded
    interpreter._implicit_cvt = with_floats
    libdevice.rsqrt = lambda x: tl.math.rsqrt(x)  # found when it is called: the interpreter replaces tl's functions

"""Keeps the driver's memory flat: what it has freed goes back to the system."""

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_ARENA_MAX = -1, -8


def return_freed_memory() -> None:
    """Let glibc and Arrow return freed memory. By default each thread, and Arrow, keep their most.

    Other C libraries than glibc have no `mallopt`; then only Arrow's memory is returned.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_TRIM_THRESHOLD, 1 << 20)

"""The environment of Ray workers and training ranks: default variables."""

# The user's own values win.
# By default, glibc returns large blocks to the system when they are freed and requests them again page by page, which
# took a third of a training step on CPUs. With these settings it keeps them, in huge pages. That costs no extra memory
# in practice, because the next step needs as much.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

# Python then imports nothing from the current folder. Python 3.10 ignores it.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}

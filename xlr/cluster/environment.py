"""Environment variables of the processes that compute: Ray workers and training ranks."""

# Defaults; the user's own values win.
# glibc returns large blocks to the system at once and gets them again page by page: a training step on CPUs spent a
# third of its time there. Keeping them, in huge pages, costs memory that the next step needs anyway.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

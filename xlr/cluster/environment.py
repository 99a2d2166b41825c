"""The environment of Ray workers and training ranks: default variables, and versions of libraries."""

import importlib.metadata
from collections.abc import Iterable

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


def version(library: str) -> str | None:
    """The installed version of a library, or None."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(libraries: Iterable[str]) -> dict[str, str | None]:
    """Installed versions, named for messages: `{"version of torch": "2.13.0", ...}`."""
    return {f"version of {library}": version(library) for library in libraries}

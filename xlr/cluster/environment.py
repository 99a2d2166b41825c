"""The environment of Ray workers and training ranks: default variables, and versions of libraries."""

import hashlib
import importlib.metadata
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]

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
    """The installed version of a library, or None. That of xlr ends with a digest of its source code."""
    try:
        found = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
    return f"{found}+{_source_digest()}" if library == "xlr" else found


def versions(libraries: Iterable[str]) -> dict[str, str | None]:
    """Installed versions, named for messages: `{"version of torch": "2.13.0", ...}`."""
    return {f"version of {library}": version(library) for library in libraries}


@cache
def _source_digest() -> str:
    """A short digest of all modules of xlr: an editable install changes without a new version."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(str(file.relative_to(_PACKAGE)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def commit() -> str | None:
    """The commit of xlr's checkout; None if it is installed without one."""
    command = ["git", "-C", str(_PACKAGE), "rev-parse", "HEAD"]
    if not (_PACKAGE.parent / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None

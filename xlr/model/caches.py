"""Where compilers of GPU kernels keep what they compiled: on the node's own disk, for this user alone.

By default it is the home folder. On a cluster many processes then compile into one network file system at once.
"""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

import torch

_VARIABLES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "VLLM_CACHE_ROOT": "vllm",
}


def keep_on_node() -> None:
    """Set the variables that name the folders, where there are GPUs; the user's own values win.

    What is compiled is executed, so a folder that others could have made or may write to is not used.
    """
    if not torch.cuda.is_available():
        return
    folder = _own_folder(Path(tempfile.gettempdir()) / f"xlr-cache-{os.getuid()}")
    if folder is not None:
        for variable, name in _VARIABLES.items():
            os.environ.setdefault(variable, str(folder / name))


def _own_folder(path: Path) -> Path | None:
    """The folder, made if it is missing; None if it is a link, belongs to another user, or others may enter it."""
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700)
    try:
        found = path.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077
    return path if private else None

"""A training that runs out of memory starts again with micro-batches of half the size, and the run keeps that size.

The rank whose memory runs out records the smaller size and ends; the launcher or the job script then starts all ranks
again, from the last checkpoint. A rank cannot go on by itself: the others wait for it in the middle of a collective.
Sums of gradients over smaller micro-batches are the same up to rounding.
"""

import re
from pathlib import Path

from xlr.run.files import read_json, write_json

FILE = "micro_batches.json"  # slurm/lib.sh knows the name
_OF_CPU = "can't allocate memory"  # torch raises a plain RuntimeError where the host's memory runs out


def tokens(run: Path, stage: str, wanted: int) -> int:
    """Tokens of a micro-batch of a stage: the wanted ones, or fewer if memory ran out before.

    Raises:
        UserError: the file of the run is damaged.
    """
    return min(sizes(run / FILE).get(stage, wanted), wanted)


def halve(run: Path, stage: str, used: int) -> int:
    """Record half of the tokens that were used, for the next start of all ranks; returns them."""
    smaller = max(used // 2, 1)
    write_json(run / FILE, sizes(run / FILE) | {stage: smaller})
    return smaller


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate memory, on a GPU or on the host."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or _OF_CPU in str(error)


def reason(error: RuntimeError) -> str:
    """How much memory could not be allocated, in torch's words."""
    of_cpu = re.search(r"you tried to allocate [0-9]+ bytes", str(error))
    return of_cpu.group() if of_cpu else str(error).split(". GPU")[0]


def sizes(path: Path) -> dict[str, int]:
    """The sizes of micro-batches that a file of a run keeps; none if there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    found: dict[str, int] = read_json(path, dict[str, int], "delete it; it only keeps sizes") if path.is_file() else {}
    return found

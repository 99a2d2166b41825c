"""Values from every rank to every rank, as JSON in tensors: torch's own functions for objects send pickles."""

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from xlr.versions import require_same

_numbers = itertools.count()


@contextmanager
def others_waiting(patience: timedelta) -> Iterator[None]:
    """A block in which the first rank may work for hours. The others wait for it afterwards, outside collectives.

    A collective that takes long ends the job. Every rank enters the block. The others notice at once if the first dies:
    it holds the store on which they wait.

    Raises:
        RuntimeError: the first rank took longer than `patience`.
    """
    store, key = dist.distributed_c10d._get_default_store(), f"xlr/alone/{next(_numbers)}"
    try:
        yield
    finally:
        if dist.get_rank() == 0:
            store.set(key, "")
    store.wait([key], patience)


def gather(value: Any) -> list[Any]:
    """The values of all ranks, by rank. A collective.

    Args:
        value: anything that JSON holds.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=device)
    sizes = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([data.numel()], device=device))
    longest = int(torch.cat(sizes).max())
    padded = [torch.empty(longest, dtype=torch.uint8, device=device) for _ in sizes]
    dist.all_gather(padded, torch.nn.functional.pad(data, (0, longest - data.numel())))
    return [json.loads(bytes(text[: int(size)].tolist()).decode()) for text, size in zip(padded, sizes, strict=True)]


def require_one_environment(node: str, versions: Mapping[str, str | None]) -> None:
    """Check that all ranks have the same versions of libraries as the first. A collective.

    Args:
        node: host name of this rank's machine.

    Raises:
        UserError: one differs; names it and its node. All ranks raise it.
    """
    (_, ours), *others = gather([node, dict(versions)])
    for theirs_node, theirs in others:
        require_same(theirs_node, theirs, ours)

"""Values from every rank to every rank, as JSON through the store on which the ranks met.

Torch's own functions for objects send pickles. The store needs no network beside the one on which ranks meet, has no
limit on how long a rank may take for its value, and knows which rank did not come.
"""

import itertools
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from xlr.terminal.console import duration
from xlr.versions import require_same

PATIENCE = timedelta(hours=1)
"""How long ranks usually wait for each other: for a model from a slow disk, for a checkpoint's files."""
_LEAVING = timedelta(minutes=1)


@dataclass(frozen=True)
class _Meeting:
    store: Any
    rank: int
    world_size: int
    numbers: Iterator[int]


_meetings: list[_Meeting] = []  # the last one counts


def meet(store: Any, rank: int, world_size: int) -> None:
    """Exchange values through this store from now on. Every rank calls it."""
    _meetings.append(_Meeting(store, rank, world_size, itertools.count()))
    store.set(f"node/{rank}", socket.gethostname())


def gather(value: Any, patience: timedelta = PATIENCE) -> list[Any]:
    """The values of all ranks, by rank. Every rank calls it, in the same order as other calls.

    Args:
        value: anything that JSON holds.
        patience: how long to wait for the last rank.

    Raises:
        RuntimeError: ranks did not come in this time; names them and their nodes.
    """
    own = _meetings[-1]
    number = next(own.numbers)
    keys = [f"{number}/{rank}" for rank in range(own.world_size)]
    own.store.set(keys[own.rank], json.dumps(value))
    try:
        own.store.wait(keys, patience)
    except RuntimeError as error:  # TCPStore raises DistStoreError, FileStore a plain one
        absent = [rank for rank, key in enumerate(keys) if not own.store.check([key])]
        if not absent:
            raise
        nodes = [_node(own.store, rank) for rank in absent]
        names = ", ".join(f"rank {rank} on {node}" for rank, node in zip(absent, nodes, strict=True))
        raise RuntimeError(
            f"waited {duration(patience.total_seconds())} for {names} of {own.world_size} ranks: see what their logs "
            "end with"
        ) from error
    return [json.loads(own.store.get(key)) for key in keys]


def leave() -> None:
    """Leave the meeting. The first rank, which may hold the store, waits until all others have left."""
    own = _meetings.pop()
    own.store.set(f"left/{own.rank}", "")
    if own.rank == 0:
        own.store.wait([f"left/{rank}" for rank in range(own.world_size)], _LEAVING)


def barrier() -> None:
    """Wait until all ranks are here; see `gather`."""
    gather(None)


def _node(store: Any, rank: int) -> str:
    key = f"node/{rank}"
    return store.get(key).decode() if store.check([key]) else "an unknown node"


def require_one_environment(node: str, versions: Mapping[str, str | None]) -> None:
    """Check that all ranks have the same versions of libraries as the first. Every rank calls it.

    Args:
        node: host name of this rank's machine.

    Raises:
        UserError: one differs; names it and its node. All ranks raise it.
    """
    (_, ours), *others = gather([node, dict(versions)])
    for theirs_node, theirs in others:
        require_same(theirs_node, theirs, ours)

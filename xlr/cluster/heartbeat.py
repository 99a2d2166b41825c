"""Names the rank that is missing when training stands still: each rank says that it is alive, from a thread.

A collective waits for a lost rank until NCCL's limit, half an hour later, and its message does not say which one. The
heartbeats go through a connection of their own to the ranks' store, because the process's own blocks while it waits.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist

from xlr.cluster.exchange import gather
from xlr.cluster.ranks import RENDEZVOUS, Ranks
from xlr.terminal.console import duration

_BEAT_SECONDS = 10.0
_NOTICE_SECONDS = 60.0
_END_SECONDS = 600.0
_ANSWER = timedelta(seconds=30)


@dataclass
class Listener:
    """What one rank knows of the others. Times are its own, so no node's clock has to be right."""

    nodes: Mapping[int, str]
    """Rank -> its node."""
    say: Callable[[str], None]
    notice: float = _NOTICE_SECONDS
    """Seconds without a heartbeat before a rank is named."""
    _heard: dict[int, tuple[int, float]] = field(default_factory=dict)
    _named: set[int] = field(default_factory=set)

    def hear(self, beats: Mapping[int, int], now: float) -> float:
        """Note the numbers of the ranks' last heartbeats, and name the ranks that have become silent or are back.

        Returns:
            Seconds since the last heartbeat of the rank that has been silent for longest.
        """
        longest = 0.0
        for rank, beat in beats.items():
            last, since = self._heard.setdefault(rank, (beat, now))
            if beat != last:
                self._heard[rank] = beat, now
                if rank in self._named:
                    self._named.discard(rank)
                    self.say(f"rank {rank} on {self.nodes[rank]} is back")
                continue
            longest = max(longest, now - since)
            if now - since >= self.notice and rank not in self._named:
                self._named.add(rank)
                self.say(
                    f"rank {rank} on {self.nodes[rank]} has not been heard from for {duration(now - since)}: its "
                    "process or its node may be lost, and the others wait for it"
                )
        return longest


@contextmanager
def heartbeats(
    ranks: Ranks, beat: float = _BEAT_SECONDS, notice: float = _NOTICE_SECONDS, end: float = _END_SECONDS
) -> Iterator[None]:
    """A block in which this rank sends heartbeats, and the first rank names those that fall silent. A collective.

    A process that has heard nothing of another for `end` seconds ends, so that the job ends, and Slurm may start it
    again. Without this, all GPUs would be idle until NCCL's limit.

    Args:
        beat: seconds between heartbeats.
        notice: seconds without one before a rank is named.
    """
    if ranks.world_size == 1:
        yield
        return
    nodes = dict(enumerate(gather(socket.gethostname())))
    ended = threading.Event()
    heart = _Heart(ranks, nodes, _connection(), notice, end)
    heart.beat(0)
    dist.barrier()  # so that every rank has a first heartbeat
    for work in (heart.talk, heart.listen):
        threading.Thread(target=work, args=(ended, beat), daemon=True).start()
    try:
        yield
        dist.barrier()  # nobody stops while others still listen; after an error, there may be no others
    finally:
        ended.set()


class _Heart:
    """The heartbeats of one rank, and what it hears of the others: the first rank of all, each other of the first."""

    def __init__(self, ranks: Ranks, nodes: Mapping[int, str], store: "dist.Store", notice: float, end: float):
        self._rank = ranks.rank
        self._store = store
        self._end = end
        self._listener = Listener(nodes, _say, notice)
        self._others = range(1, ranks.world_size) if ranks.rank == 0 else (0,)
        self._last = dict.fromkeys(self._others, 0)

    def beat(self, number: int) -> None:
        """Send a heartbeat."""
        self._store.set(f"xlr/heartbeat/{self._rank}", str(number))

    def talk(self, ended: threading.Event, seconds: float) -> None:
        """Write this rank's heartbeats to the store, and read the others' from it, until the event is set.

        While the process that holds the store is stopped, or its node is lost, this waits for it without end.
        """
        number = 0
        while not ended.wait(seconds):
            number += 1
            with suppress(RuntimeError, OSError):  # the store's process has ended
                self.beat(number)
                for other in self._others:
                    self._last[other] = int(self._store.get(f"xlr/heartbeat/{other}"))

    def listen(self, ended: threading.Event, seconds: float) -> None:
        """Name silent ranks, and end this process if one stays silent, until the event is set."""
        awake, last = 0.0, time.monotonic()
        while not ended.wait(seconds):
            now = time.monotonic()
            awake += min(now - last, 2 * seconds)  # Slurm may have suspended the job in between
            last = now
            if self._listener.hear(dict(self._last), awake) >= self._end and not ended.is_set():
                _say(f"this rank, {self._rank}, has waited for {duration(self._end)} and ends")
                sys.stderr.flush()
                os._exit(1)  # the main thread cannot be interrupted: it waits in a collective


def _connection() -> "dist.Store":
    """A connection to the ranks' store that this thread alone uses."""
    file = os.environ.get(RENDEZVOUS)
    if file is not None:
        return dist.FileStore(f"{file}.heartbeats", -1)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_ANSWER)


def _say(text: str) -> None:
    print(f"[xlr] {text}", file=sys.stderr, flush=True)

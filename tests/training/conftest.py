"""A process group of one rank: this process."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest
import torch

from xlr.cluster.ranks import RENDEZVOUS, Ranks
from xlr.training import engine


@dataclass(frozen=True)
class OnlyRank:
    """This process as the only rank: its device, and the addresses where it listens since it is a rank."""

    device: torch.device
    addresses: frozenset[tuple[str, int]]


@pytest.fixture(scope="session")
def only_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnlyRank]:
    """Make this process the only rank, as the launcher does.

    One group serves all tests: DeepSpeed remembers the first group of a process, and fails with a second. The variables
    that make a process a rank are removed again, because the tests that follow start other processes.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(RENDEZVOUS, str(tmp_path_factory.mktemp("ranks") / "meet"))
        environment.setenv("GLOO_SOCKET_IFNAME", "lo")
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            environment.setenv(name, "")  # `init_distributed` sets them; the context removes them
        before = _listening()
        device = engine.init_distributed(Ranks(0, 1, 0))
        only = OnlyRank(device, frozenset(_listening() - before))
    yield only
    engine.close_distributed()


def _listening() -> set[tuple[str, int]]:
    """Addresses at which this process listens."""
    found = psutil.Process().net_connections("inet")
    return {tuple(one.laddr) for one in found if one.status == psutil.CONN_LISTEN or one.type == socket.SOCK_DGRAM}

"""A process group of one rank: this process."""

import functools
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from tests.conftest import Cli
from xlr.cluster.ranks import RENDEZVOUS, Ranks
from xlr.shipped import shipped
from xlr.zero import engine


@dataclass(frozen=True)
class OnlyRank:
    """This process as the only rank: its device, and the addresses where it listens since it is a rank."""

    device: torch.device
    addresses: frozenset[tuple[str, int]]


_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def gathering(name: str, folder: Path) -> str:
    """A shipped DeepSpeed file that, under ZeRO-3, gathers every weight for each use, as on many GPUs.

    Its buckets are small: DeepSpeed keeps those of every engine, and a process that has more address space than the
    machine has memory cannot fork.
    """
    tree = json.loads(shipped("ds_configs", f"{name}.json").read_text(encoding="utf-8"))
    tree["zero_optimization"]["reduce_bucket_size"] = 1_000_000
    if tree["zero_optimization"]["stage"] == 3:
        tree["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(tree), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="session")
def _group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnlyRank]:
    """Make this process the only rank, as the launcher does.

    One group serves all tests: DeepSpeed remembers the first group of a process, and fails with a second.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(RENDEZVOUS, str(tmp_path_factory.mktemp("ranks") / "meet"))
        environment.setenv("GLOO_SOCKET_IFNAME", "lo")
        for name, value in _VARIABLES.items():
            environment.setenv(name, value)
        before = _listening()
        device = engine.init_distributed(Ranks(0, 1, 0))
        only = OnlyRank(device, frozenset(_listening() - before))
    yield only
    engine.close_distributed()


@pytest.fixture
def only_rank(_group: OnlyRank, monkeypatch: pytest.MonkeyPatch) -> OnlyRank:
    """This process as the only rank. Only this test's environment says so: others start processes that are no ranks."""
    for name, value in _VARIABLES.items():
        monkeypatch.setenv(name, value)
    return _group


@pytest.fixture
def cli_rank(_group: OnlyRank, cli_here: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Like `cli_here`, as the only rank: a training starts no other process."""
    monkeypatch.setattr(engine, "init_distributed", lambda ranks: _group.device)
    monkeypatch.setattr(engine, "close_distributed", lambda: None)
    return functools.partial(cli_here, **_VARIABLES)


def _listening() -> set[tuple[str, int]]:
    """Addresses at which this process listens."""
    found = psutil.Process().net_connections("inet")
    return {tuple(one.laddr) for one in found if one.status == psutil.CONN_LISTEN or one.type == socket.SOCK_DGRAM}

"""Values that ranks send to each other arrive whole, without pickles; ranks have the same versions of libraries."""

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from xlr.cluster.exchange import barrier, gather, leave, meet, require_one_environment
from xlr.cluster.launcher import free_port
from xlr.errors import UserError

VALUES: list[Any] = [[], None, ["ñ" * 5000, "\U0001f600", 'quo"te'], {"a": 1.5}, "x"]


def store(where: Path | int, number: int, world_size: int) -> Any:
    """In a file, or at a port of the first rank."""
    if isinstance(where, Path):
        return dist.FileStore(str(where / "meet"), world_size)
    return dist.TCPStore("127.0.0.1", where, world_size, is_master=number == 0)


def exchanging(number: int, world_size: int, where: Path | int) -> None:
    meet(store(where, number, world_size), number, world_size)
    for turn in range(len(VALUES)):
        wanted = [VALUES[(turn + other) % len(VALUES)] for other in range(world_size)]
        assert gather(wanted[number]) == wanted
    require_one_environment(f"n{number}", {"version of torch": "2.13.0"})
    liger = {"version of liger-kernel": None if number == 2 else "0.8.5"}
    with pytest.raises(UserError, match=r"n2: version of liger-kernel is None there and 0\.8\.5 here; use one"):
        require_one_environment(f"n{number}", liger)
    barrier()
    leave()


def missing(number: int, world_size: int, where: Path | int) -> None:
    """Rank 1 meets the others, and then does not come any more."""
    meet(store(where, number, world_size), number, world_size)
    gather("here")
    if number != 1:
        with pytest.raises(RuntimeError, match=r"waited 0:01 for rank 1 on \S+ of 3 ranks: see what their logs"):
            gather("here", timedelta(seconds=1))
    leave()


@pytest.mark.parametrize("rank", [exchanging, missing])
@pytest.mark.parametrize("place", ["file", "port"])
def test_ranks_exchange_values_and_name_who_does_not_come(rank: Any, place: str, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")  # this process may be a rank of another test already
    where = tmp_path if place == "file" else free_port()
    processes = [spawn.Process(target=rank, args=(number, 3, where)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]

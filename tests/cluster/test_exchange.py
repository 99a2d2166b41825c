"""Values that ranks send to each other arrive whole, without pickles; ranks have the same versions of libraries."""

import multiprocessing
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from xlr.cluster.exchange import gather, others_waiting, require_one_environment
from xlr.errors import UserError

VALUES: list[Any] = [[], None, ["ñ" * 5000, "\U0001f600", 'quo"te'], {"a": 1.5}, "x"]


def rank(number: int, world_size: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=world_size)
    events = dist.FileStore(str(folder / "events"), world_size)
    for turn in range(len(VALUES)):
        wanted = [VALUES[(turn + other) % len(VALUES)] for other in range(world_size)]
        assert gather(wanted[number]) == wanted
    require_one_environment(f"n{number}", {"version of torch": "2.13.0"})
    liger = {"version of liger-kernel": None if number == 2 else "0.8.5"}
    with pytest.raises(UserError, match=r"n2: version of liger-kernel is None there and 0\.8\.5 here; use one"):
        require_one_environment(f"n{number}", liger)
    begun = time.monotonic()
    with others_waiting(timedelta(minutes=1)):
        if number == 0:
            time.sleep(1.5)
    assert time.monotonic() - begun > 1
    if number:
        with pytest.raises(RuntimeError), others_waiting(timedelta(seconds=1)):
            pass
        events.set(f"gave up {number}", "")
    else:
        with others_waiting(timedelta(seconds=1)):
            events.wait([f"gave up {other}" for other in range(1, world_size)], timedelta(minutes=1))
    dist.barrier()
    dist.destroy_process_group()


def test_every_rank_receives_the_values_of_all_by_rank(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")  # this process may be a rank of another test already
    processes = [spawn.Process(target=rank, args=(number, 3, tmp_path)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]

"""A rank that falls silent is named, and the others end instead of waiting for half an hour."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import wait_until
from xlr.cluster.heartbeat import Listener

RANK = """
import os, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from xlr.cluster.ranks import ranks
from xlr.cluster import heartbeat
from xlr.cluster.heartbeat import heartbeats
heartbeat._ANSWER = timedelta(seconds=1)
own = ranks()
kind, seconds = sys.argv[1], float(sys.argv[2])
method = None if kind == "port" else "file://" + kind
dist.init_process_group("gloo", init_method=method, rank=own.rank, world_size=2, timeout=timedelta(minutes=5))
with heartbeats(own, beat=0.2, notice=seconds / 4, end=seconds):
    print("begun", flush=True)
    enough = torch.zeros(1)
    while not enough.item():
        enough = torch.tensor([float(os.path.exists(sys.argv[3]))])
        dist.all_reduce(enough)  # waits for a rank that is stopped
        time.sleep(0.1)
print("finished", flush=True)
"""


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("port", [False, True])
def test_a_stopped_rank_is_named_and_the_other_ends(lost: int, port: bool, tmp_path: Path) -> None:
    processes = started(port, tmp_path, end=4.0)
    os.kill(processes[lost].pid, signal.SIGSTOP)
    try:
        other = processes[1 - lost]
        assert other.wait(180) == 1
        said = (tmp_path / f"{1 - lost}").read_text(encoding="utf-8")
        assert f"rank {lost} on " in said
        assert "has not been heard from for 0:0" in said
        assert f"this rank, {1 - lost}, has waited for 0:04 and ends" in said
    finally:
        os.kill(processes[lost].pid, signal.SIGKILL)
        processes[lost].wait()


def test_a_rank_that_comes_back_is_said_and_all_finish(tmp_path: Path) -> None:
    processes = started(port=True, folder=tmp_path, end=30.0)
    os.kill(processes[1].pid, signal.SIGSTOP)
    wait_until(lambda: "has not been heard from" in (tmp_path / "0").read_text(encoding="utf-8"), "the message")
    os.kill(processes[1].pid, signal.SIGCONT)
    wait_until(lambda: " is back" in (tmp_path / "0").read_text(encoding="utf-8"), "its return")
    (tmp_path / "enough").touch()
    assert [process.wait(180) for process in processes] == [0, 0]
    assert all("finished" in (tmp_path / str(rank)).read_text(encoding="utf-8") for rank in range(2))


def test_a_suspended_job_continues(tmp_path: Path) -> None:
    """Slurm may stop all ranks for as long as it likes, also when one has been silent before."""
    processes = started(port=True, folder=tmp_path, end=15.0)
    os.kill(processes[1].pid, signal.SIGSTOP)
    wait_until(lambda: "has not been heard from" in (tmp_path / "0").read_text(encoding="utf-8"), "the message")
    os.kill(processes[0].pid, signal.SIGSTOP)
    time.sleep(20)  # longer than the silence that ends a rank
    os.kill(processes[0].pid, signal.SIGCONT)
    time.sleep(1)  # in which it would end itself, if it had counted the time that it was stopped
    os.kill(processes[1].pid, signal.SIGCONT)
    (tmp_path / "enough").touch()
    assert [process.wait(180) for process in processes] == [0, 0]


def test_undisturbed_ranks_say_nothing(tmp_path: Path) -> None:
    processes = started(port=False, folder=tmp_path, end=120.0)
    time.sleep(5)
    (tmp_path / "enough").touch()
    assert [process.wait(180) for process in processes] == [0, 0]
    assert not any("[xlr]" in (tmp_path / str(rank)).read_text(encoding="utf-8") for rank in range(2))


def started(port: bool, folder: Path, end: float) -> "list[subprocess.Popen[bytes]]":
    """Two ranks whose training has begun. They write to the files 0 and 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(number), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    names |= {} if port else {"XLR_RENDEZVOUS": str(folder / "meet")}
    kind = "port" if port else str(folder / "meet")
    processes = []
    for rank in range(2):
        own = os.environ | names | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / str(rank)).open("wb") as output:
            command = [sys.executable, "-c", RANK, kind, str(end), str(folder / "enough")]
            processes.append(subprocess.Popen(command, env=own, stdout=output, stderr=output))
    for rank in range(2):
        wait_until(lambda rank=rank: "begun" in (folder / str(rank)).read_text(encoding="utf-8"), "the ranks")  # type: ignore[misc]
    return processes


@given(silent=st.sets(st.integers(1, 7)), beats=st.integers(1, 20), notice=st.integers(1, 10))
def test_exactly_the_silent_ranks_are_named_once(silent: set[int], beats: int, notice: int) -> None:
    said: list[str] = []
    listener = Listener({rank: f"n{rank}" for rank in range(8)}, said.append, notice=notice)
    longest = 0.0
    for now in range(beats + 1):
        longest = listener.hear({rank: 0 if rank in silent else now for rank in range(1, 8)}, float(now))
    assert longest == (beats if silent else 0)
    assert len(said) == (len(silent) if beats >= notice else 0)
    assert {int(text.split()[1]) for text in said} <= silent


def test_a_silent_rank_that_beats_again_can_be_named_again() -> None:
    said: list[str] = []
    listener = Listener({1: "n1"}, said.append, notice=2)
    for now, beat in enumerate([0, 0, 0, 1, 1, 1, 1]):
        listener.hear({1: beat}, float(now))
    assert ["back" in text for text in said] == [False, True, False]

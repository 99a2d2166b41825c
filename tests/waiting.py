"""Waiting for what another process does, with an end."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import psutil


def wait_until(happened: Callable[[], Any], what: str, seconds: float = 180, pause: float = 0.001) -> Any:
    """Call `happened` until it returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := happened():
            return found
        time.sleep(pause)  # by default short: a checkpoint of a tiny model is written in a few milliseconds
    raise AssertionError(f"did not happen within {seconds} s: {what}")


def descendants(pid: int, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """The processes below a process that are wanted; of those that end while they are asked, none."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if wanted(process):
                found.append(process)
    return found


def ranks_of(pid: int) -> list[psutil.Process]:
    """The training processes below a process, by rank."""
    ranks = descendants(pid, lambda child: "RANK" in child.environ() and "-m" in child.cmdline())
    return sorted(ranks, key=lambda child: int(child.environ()["RANK"]))

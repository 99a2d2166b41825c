"""Waiting for other processes, with a timeout."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import psutil


def wait_until(happened: Callable[[], Any], what: str, seconds: float = 180, pause: float = 0.001) -> Any:
    """Call `happened` until it returns something true, and return that. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := happened():
            return found
        time.sleep(pause)  # short by default, because a checkpoint of a tiny model is written in a few milliseconds
    raise AssertionError(f"did not happen within {seconds} s: {what}")


def descendants(pid: int, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """The descendants of a process for which `wanted` is true. Processes that end meanwhile are left out."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if wanted(process):
                found.append(process)
    return found


def ranks_of(pid: int) -> list[psutil.Process]:
    """The training processes among the descendants of a process, in the order of their ranks."""
    ranks = descendants(pid, lambda child: "RANK" in child.environ() and "-m" in child.cmdline())
    return sorted(ranks, key=lambda child: int(child.environ()["RANK"]))

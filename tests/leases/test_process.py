"""Processes: alive or not, and temporary names that say who writes them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from xlr.leases import process


@pytest.fixture
def child() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def test_a_process_is_alive_until_it_ends_also_while_it_is_stopped(child: "subprocess.Popen[bytes]") -> None:
    start = process.started(child.pid)
    assert start
    assert process.is_alive(child.pid, start)
    assert not process.is_alive(child.pid, str(int(start) + 1)), "a later process with the same id"
    child.send_signal(signal.SIGSTOP)
    assert process.is_alive(child.pid, start)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its parent has not asked how
    assert not process.is_alive(child.pid, start)
    child.wait()
    assert not process.is_alive(child.pid, start)
    assert not process.is_alive(10**18, start)


@pytest.mark.parametrize("proc", ["hidden", "unreadable"])
def test_a_process_that_proc_hides_is_alive(monkeypatch: pytest.MonkeyPatch, proc: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    if proc == "hidden":
        monkeypatch.setattr(process.Path, "exists", lambda _: False)
        monkeypatch.setattr(os, "kill", refuse)
    else:
        monkeypatch.setattr(process.Path, "read_text", refuse)
    assert process.is_alive(os.getpid(), "5")


def test_tokens_name_their_process_and_differ(
    child: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = {process.token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(token.replace("-", "").isalnum() for token in tokens)
    assert process.may_be_alive(tokens.pop(), modified=0)
    monkeypatch.setattr(os, "getpid", lambda: child.pid)
    of_child = process.token()
    assert process.may_be_alive(of_child, modified=0)
    child.kill()
    child.wait()
    assert not process.may_be_alive(of_child, modified=time.time())


def test_a_process_of_another_place_counts_as_alive_for_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    token = process.token()
    monkeypatch.setattr(process, "place", lambda: "another machine")
    for name in (token, "1a2b3c4d", "", "x-1-1-1", f"{token}x"):
        assert process.may_be_alive(name, time.time() - 3600)
        assert process.may_be_alive(name, time.time() + 3600)
        assert not process.may_be_alive(name, time.time() - 90000)

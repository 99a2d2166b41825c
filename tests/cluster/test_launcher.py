"""Ranks import nothing from the current folder, meet without an open port, and end with the launcher."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import wait_until
from xlr.cluster import launcher
from xlr.cluster.launcher import spawn
from xlr.leases import lease

SHADOWS = ("yaml.py", "torch.py", "typer.py", "json.py", "xlr/__init__.py", "xlr/__main__.py", "xlr/commands/cli.py")

# In place of Python: a rank that ends with its launcher, looks often, and writes down its process id.
RANK = """#!{python}
import os, pathlib, time
from xlr.cluster import launcher
launcher._LOOK_SECONDS = 0.05
launcher.end_with_launcher()
(pathlib.Path({folder!r}) / f"rank-{{os.environ['RANK']}}").write_text(str(os.getpid()))
time.sleep(600)
"""
LAUNCH = """
import pathlib, sys
from xlr.cluster.launcher import spawn
sys.executable = sys.argv[1]
spawn(["train"], 2, pathlib.Path(sys.argv[2]))
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the current folder one whose modules leave a mark when they are imported. Returns the mark."""
    mark, folder = tmp_path / "imported", tmp_path / "hostile"
    for name in SHADOWS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.chdir(folder)
    return mark


def test_ranks_import_nothing_from_the_current_folder(
    hostile: Path, tiny_tree: dict[str, Any], write_config: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    spawn(["config", str(write_config(tiny_tree))], 1, tmp_path / "log")
    assert not hostile.exists()


def test_ranks_meet_in_a_private_file_and_connect_over_loopback(tmp_path: Path) -> None:
    environment = launcher._environment(1, 2, tmp_path / "meet", tmp_path / "error")
    assert environment["XLR_RENDEZVOUS"] == str(tmp_path / "meet")
    assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == "lo"
    assert environment["PYTHONSAFEPATH"] == "1"


@pytest.fixture
def launched(tmp_path: Path) -> Any:
    """A launcher of two ranks, and the ranks."""
    rank = tmp_path / "rank"
    rank.write_text(RANK.format(python=sys.executable, folder=str(tmp_path)))
    rank.chmod(0o700)
    command = [sys.executable, "-c", LAUNCH, str(rank), str(tmp_path / "log")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    notes = [tmp_path / f"rank-{number}" for number in range(2)]
    pids = [int(wait_until(lambda note=note: note.is_file() and note.read_text(), "a rank")) for note in notes]
    yield process, [psutil.Process(pid) for pid in pids]
    process.kill()
    process.wait()


def test_ranks_end_with_a_killed_launcher(launched: Any) -> None:
    process, ranks = launched
    process.kill()
    psutil.wait_procs(ranks, timeout=10)
    assert not any(rank.is_running() for rank in ranks)


def test_ranks_of_a_stopped_launcher_end(launched: Any, tmp_path: Path) -> None:
    process, ranks = launched
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: all(rank.status() == psutil.STATUS_ZOMBIE for rank in ranks), "the end of both ranks", 10)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "is gone or stopped; this rank ends" in said


def test_ranks_outlive_a_short_stop(launched: Any) -> None:
    process, ranks = launched
    for _ in range(4):
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, "a stop")
        process.send_signal(signal.SIGCONT)
    assert all(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)


def test_ranks_of_a_stopped_launcher_end_before_others_can_take_its_lease() -> None:
    silent = launcher._LOOK_SECONDS * launcher._STOPPED_LOOKS
    assert lease.RENEW_SECONDS + silent < min(lease.OVER_SECONDS, lease.STALE_SECONDS)


def test_a_rank_without_a_launcher_keeps_running() -> None:
    assert launcher._LAUNCHER not in os.environ
    launcher.end_with_launcher()

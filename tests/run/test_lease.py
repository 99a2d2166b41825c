"""Leases: one holder at a time, also when holders die, on this machine or another."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from xlr.errors import UserError
from xlr.run import lease

HOLD = (
    "import sys, time; from pathlib import Path; from xlr.run import lease; from xlr.errors import UserError\n"
    "try:\n"
    "    with lease.held(Path(sys.argv[1]), ['iter1/scores']):\n"
    "        print('held', flush=True); time.sleep(float(sys.argv[2]))\n"
    "except UserError as error: print(error)"
)


def start(folder: Path, seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True)


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline()


def taken(folder: Path) -> bool:
    try:
        with lease.held(folder, ["iter1/scores"]):
            return True
    except UserError:
        return False


def hold_elsewhere(folder: Path, **fields: Any) -> Path:
    """Make the newest lease one that a live process on another machine holds."""
    newest = max((folder / "iter1" / "scores").glob("0*"))
    record = {"host": "node9", "pid": 12, "started": "5", "place": "another machine"} | fields
    newest.write_text(json.dumps(record), encoding="utf-8")
    return newest


def test_a_second_holder_is_refused_until_the_first_releases_the_lease(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    assert lease.holder(folder, "iter1/scores") is None
    with lease.held(folder, ["iter1/pairs", "iter1/scores"]):
        assert f"process {os.getpid()} on" in (lease.holder(folder, "iter1/scores") or "")
        with (
            pytest.raises(UserError, match=r"iter1/scores is in use by another xlr \(process"),
            lease.held(folder, ["iter2/scores", "iter1/scores"]),
        ):
            pass
        assert lease.holder(folder, "iter2/scores") is None, (
            "the lease that was taken before the refusal was not released"
        )
    assert taken(folder)


def test_a_killed_holder_loses_its_lease_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, 600)
    assert first_line(process) == "held\n"
    assert not taken(tmp_path)
    process.kill()
    process.wait()
    assert lease.holder(tmp_path, "iter1/scores") is None
    assert taken(tmp_path)


def test_only_one_of_many_processes_takes_over_from_a_dead_holder(tmp_path: Path) -> None:
    first = start(tmp_path, 600)
    assert first_line(first) == "held\n"
    first.kill()
    first.wait()
    lines = [first_line(process) for process in [start(tmp_path, 5) for _ in range(8)]]
    assert lines.count("held\n") == 1, lines
    assert sum("in use by another xlr" in line for line in lines) == 7, lines


def test_a_holder_on_another_machine_is_alive_while_it_renews(tmp_path: Path) -> None:
    assert taken(tmp_path)
    newest = hold_elsewhere(tmp_path)
    renewal = threading.Timer(1.5, os.utime, [newest])
    renewal.start()
    with pytest.raises(UserError, match="process 12 on node9"), lease.held(tmp_path, ["iter1/scores"]):
        pass


def test_a_holder_on_another_machine_that_does_not_renew_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert taken(tmp_path)
    newest = hold_elsewhere(tmp_path)
    long_ago = newest.stat().st_mtime - lease.STALE_SECONDS - 1
    os.utime(newest, (long_ago, long_ago))
    assert taken(tmp_path)
    hold_elsewhere(tmp_path)
    monkeypatch.setattr(lease, "STALE_SECONDS", 2)
    assert taken(tmp_path)


def test_the_holder_before_a_restart_of_the_same_slurm_job_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert taken(tmp_path)
    hold_elsewhere(tmp_path, job="7", restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert taken(tmp_path)


def test_a_holder_that_lost_its_lease_exits(tmp_path: Path) -> None:
    code = HOLD.replace("from xlr.run import lease;", "from xlr.run import lease; lease.RENEW_SECONDS = 0.1;")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "600"], stdout=subprocess.PIPE, text=True)
    assert first_line(process) == "held\n"
    (tmp_path / "iter1" / "scores" / "000002").write_text("{}")
    assert process.wait(timeout=30) == 1
    assert process.stdout
    assert "iter1/scores: another xlr took over while this one was paused; this one ends" in process.stdout.read()

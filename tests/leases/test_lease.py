"""Leases: one holder at a time, also when holders die or pause, on this machine or another, whatever the clocks say."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from xlr.errors import UserError
from xlr.leases import lease, leasefile, process
from xlr.leases.leasefile import Holder, Look
from xlr.run.artifact import Artifact
from xlr.run.manifests import manifest_path
from xlr.terminal.progress import Clock

HOLD = (
    "import sys, time; from pathlib import Path; from xlr.leases import lease; from xlr.errors import UserError\n"
    "try:\n"
    "    with lease.held(Path(sys.argv[1]), ['iter1/scores']):\n"
    "        print('held', flush=True); time.sleep(float(sys.argv[2]))\n"
    "except UserError as error: print(error)"
)


def start(folder: Path, seconds: float, code: str = HOLD) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", code, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True)


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
    """Make the newest lease one that a process on another machine holds."""
    newest = max((folder / "iter1" / "scores").glob("0*"))
    record = {"host": "node9", "pid": 12, "started": "5", "place": "another machine"} | fields
    newest.write_text(json.dumps(record), encoding="utf-8")
    return newest


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders that are watched die soon."""
    monkeypatch.setattr(lease, "OVER_SECONDS", 0.1)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.2)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.05)


def test_a_second_holder_is_refused_until_the_first_releases_the_lease(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    assert lease.holder(folder, "iter1/scores") is None
    with lease.held(folder, ["iter1/pairs", "iter1/scores"]):
        assert f"process {os.getpid()} on" in (lease.holder(folder, "iter1/scores") or "")
        assert (lease.first_holder(folder, ["iter2/scores", "iter1/scores"]) or "")[0] == "iter1/scores"
        with (
            pytest.raises(UserError, match=r"iter1/scores is in use by another xlr \(process"),
            lease.held(folder, ["iter2/scores", "iter1/scores"]),
        ):
            pass
        assert lease.holder(folder, "iter2/scores") is None, "a refusal must take no lease"
    assert taken(folder)
    assert lease.first_holder(folder, ["iter1/pairs", "iter1/scores"]) is None


def test_a_killed_holder_loses_its_lease_at_once_and_a_stopped_one_keeps_it(tmp_path: Path, short: None) -> None:
    process = start(tmp_path, 600)
    assert first_line(process) == "held\n"
    process.send_signal(signal.SIGSTOP)
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
    processes = [start(tmp_path, 600) for _ in range(6)]
    lines = [first_line(each) for each in processes]
    for each in processes:
        each.kill()
    assert lines.count("held\n") == 1, lines
    assert sum("in use by another xlr" in line for line in lines) == 5, lines


def test_a_holder_on_another_machine_is_alive_while_it_renews(tmp_path: Path) -> None:
    assert taken(tmp_path)
    newest = hold_elsewhere(tmp_path)
    renewal = threading.Timer(1.5, os.utime, [newest])
    renewal.start()
    with pytest.raises(UserError, match="process 12 on node9"), lease.held(tmp_path, ["iter1/scores"]):
        pass


@pytest.mark.parametrize("age", [10.0**6, 0.0, -3600.0, -(10.0**9)])
def test_a_holder_on_another_machine_that_does_not_renew_is_dead_whatever_its_age(
    tmp_path: Path, short: None, age: float
) -> None:
    assert taken(tmp_path)
    newest = hold_elsewhere(tmp_path)
    os.utime(newest, (time.time() - age, time.time() - age))
    assert taken(tmp_path)


def test_dead_holders_of_many_leases_are_watched_at_the_same_time(
    tmp_path: Path, short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monotonic = time.monotonic()
    names = [f"iter{number}/scores" for number in range(30)]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "000001").touch()
    with lease.held(tmp_path, names):
        assert time.monotonic() - monotonic < 30 * lease.STALE_SECONDS
    assert "iter0/scores and 29 more: held by a process that has just started; waiting" in capsys.readouterr().out


def test_slurm_shortens_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    monkeypatch.setattr(lease, "STALE_SECONDS", 600)
    assert taken(tmp_path)
    hold_elsewhere(tmp_path, job="7", restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert taken(tmp_path)
    hold_elsewhere(tmp_path, job="8", restart=0)
    monkeypatch.setattr(lease.scheduler, "is_over", lambda job, restart: (job, restart) == ("8", 0))
    assert lease.holder(tmp_path, "iter1/scores") is None
    assert taken(tmp_path)


WRITE = HOLD.replace("time.sleep(float(sys.argv[2]))", "write()").replace(
    "try:",
    "lease.LOOK_SECONDS = 0.01; file = Path(sys.argv[1], 'written').open('ab', buffering=0)\n"
    "def write():\n"
    "    while True: lease.require_held(); file.write(b'.')\n"
    "try:",
)


def test_a_stopped_holder_that_lost_its_lease_ends_before_it_writes(tmp_path: Path) -> None:
    process = start(tmp_path, 0, WRITE)
    assert first_line(process) == "held\n"
    written = tmp_path / "written"
    while not written.stat().st_size:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    (tmp_path / "iter1" / "scores" / "000002").write_text("{}")
    size = written.stat().st_size
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=30) == 1
    assert written.stat().st_size <= size + 1  # it may have been stopped between the question and the write
    assert process.stdout
    assert "iter1/scores: another xlr took over while this one was paused" in process.stdout.read()


def test_an_artefact_is_not_finished_without_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(path: Path) -> None:
        raise EndedError

    monkeypatch.setattr(lease, "_end", end)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.01)
    target = Artifact(tmp_path, tmp_path / "iter1" / "scores", "score", {}, {})
    target.folder.mkdir(parents=True)
    with lease.held(tmp_path / "leases", [target.title]):
        time.sleep(0.02)
        target.finish(0, None, Clock())
        manifest_path(target.folder).unlink()
        (tmp_path / "leases" / "iter1" / "scores" / "000002").touch()
        time.sleep(0.02)
        with pytest.raises(EndedError):
            target.finish(0, None, Clock())
    assert not manifest_path(target.folder).exists()


@pytest.mark.parametrize("loss", ["taken", "deleted", "marked"])
def test_a_holder_that_lost_its_lease_exits(tmp_path: Path, loss: str) -> None:
    code = HOLD.replace("from xlr.leases import lease;", "from xlr.leases import lease; lease.RENEW_SECONDS = 0.1;")
    process = start(tmp_path, 600, code.replace("lease.RENEW", "lease.LOOK_SECONDS = 0.05; lease.RENEW"))
    assert first_line(process) == "held\n"
    series = tmp_path / "iter1" / "scores"
    if loss == "taken":
        (series / "000002").write_text("{}")
    elif loss == "deleted":
        (series / "000001").unlink()
    else:
        leasefile.release(series / "000001")
    assert process.wait(timeout=30) == 1


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": Path.touch,
    "junk": lambda path: path.write_text("junk"),
    "binary": lambda path: path.write_bytes(random.Random(0).randbytes(1000)),
    "list": lambda path: path.write_text("[]"),
    "no record": lambda path: path.write_text("{}"),
    "digits": lambda path: path.write_text("1" * 5000),
    "deep": lambda path: path.write_text("[" * 60000),
    "NUL": lambda path: path.write_bytes(bytes(100000)),
    "folder": Path.mkdir,
    "pipe": make_pipe,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_lease_is_one_of_a_dead_holder(tmp_path: Path, short: None, kind: str) -> None:
    series = tmp_path / "iter1" / "scores"
    series.mkdir(parents=True)
    DAMAGE[kind](series / "000007")
    assert lease.holder(tmp_path, "iter1/scores") in (None, "a process that has just started")
    assert taken(tmp_path)
    assert (series / "000008").read_text() == '{"released": true}'


@pytest.mark.parametrize(
    "field",
    [{"pid": value} for value in (True, "12", -1, 0, 1.5, None, [])]
    + [{"started": 5}, {"started": "x"}, {"host": "[/red]\x1b"}, {"place": 1}, {"job": "--all"}, {"restart": "0"}],
    ids=str,
)
def test_a_record_with_another_value_is_no_record(tmp_path: Path, short: None, field: dict[str, Any]) -> None:
    assert taken(tmp_path)
    hold_elsewhere(tmp_path, **field)
    assert leasefile.newest(tmp_path / "iter1" / "scores").holder is None
    assert taken(tmp_path)


@pytest.mark.parametrize("where", [".", "iter1", "iter1/scores"])
def test_a_file_where_a_folder_of_leases_should_be_is_named(tmp_path: Path, where: str) -> None:
    path = tmp_path / "leases" / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with pytest.raises(UserError, match="this lease cannot be read or written"):
        lease.holder(tmp_path / "leases", "iter1/scores")
    with pytest.raises(UserError, match="this lease cannot be read or written"), lease.held(path, ["iter1/scores"]):
        pass


def test_names_that_are_no_numbers_are_ignored_and_old_leases_are_removed(tmp_path: Path) -> None:
    series = tmp_path / "iter1" / "scores"
    series.mkdir(parents=True)
    for name in ("0x", "1", "٣٣٣٣٣٣", "000001.tmp", "9" * 30):
        (series / name).touch()
    for _ in range(30):
        assert taken(tmp_path)
    assert len(list(series.iterdir())) == 5 + 17
    with pytest.raises(FileExistsError):
        leasefile.create(series, 3, leasefile.ourselves())  # by a process that saw 2 as the newest
    assert not (series / "000003").exists()


class EndedError(Exception):
    """A simulated process ended itself."""


class Simulated:
    """A process of the simulation: it watches, then takes the lease, then holds it."""

    def __init__(self, place: str, pid: int, job: str) -> None:
        self.record = Holder(host=place, pid=pid, started="1", place=place, job=job)
        self.alive, self.paused, self.was_paused = True, False, False
        self.watch: lease.Watch | None = None
        self.lost: Look | None = None
        self.held: lease.Held | None = None


PLACES = ["a", "b", "c"]


class Leases(RuleBasedStateMachine):
    """Processes on three machines want one lease. They die and pause, clocks jump, Slurm is wrong about some jobs."""

    @initialize(seed=st.integers(0, 10**6))
    def begin(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = tempfile.TemporaryDirectory()
        self.series = Path(self.folder.name) / "iter1" / "scores"
        self.series.mkdir(parents=True)
        self.processes: list[Simulated] = []
        self.number = 0
        self.seconds = 0.0
        self.time_of_day = dict.fromkeys(PLACES, 1.7e9)
        self.since_boot = {place: self.random.uniform(0, 10**6) for place in PLACES}
        self.now: Simulated | None = None
        self.patch = pytest.MonkeyPatch()
        clock = SimpleNamespace(
            monotonic=self._since_boot,
            clock_gettime=lambda _: self._since_boot(),
            time=lambda: self.time_of_day[self._place()] + self.seconds,
            CLOCK_BOOTTIME=0,
        )
        self.patch.setattr(lease, "time", clock)
        self.patch.setattr(lease, "_end", self._end)
        self.patch.setattr(process, "place", self._place)
        self.patch.setattr(process, "is_alive", self._is_alive)
        self.patch.setattr(leasefile, "ourselves", lambda: self.now and self.now.record)

    def teardown(self) -> None:
        """Once all others are dead, a new process gets the lease in bounded time."""
        if not hasattr(self, "patch"):
            return
        try:
            for each in self.processes:
                each.alive = False
            last = self._start(PLACES[self.number % 3])
            begun = self.seconds
            while not last.held:
                assert last.alive
                last.paused = False
                self._second()
            assert self.seconds - begun <= lease.STALE_SECONDS + 2
        finally:
            self.patch.undo()
            self.folder.cleanup()

    def _place(self) -> str:
        assert self.now
        return self.now.record.place

    def _since_boot(self) -> float:
        return self.seconds + self.since_boot[self._place()]

    def _is_alive(self, pid: int, started: str) -> bool:
        found = [each.record.place for each in self._living() if each.record.pid == pid]
        assert found in ([], [self._place()]), "asked in another place"
        return bool(found)

    def _is_over(self, job: str, restart: int) -> bool:
        return job == "666" or not any(each.record.job == job for each in self._living())

    def _end(self, path: Path) -> None:
        raise EndedError

    def _start(self, place: str, job: str = "") -> Simulated:
        self.number += 1
        each = Simulated(place, self.number, job)
        self.processes.append(each)
        self.now = each
        each.watch = lease.Watch(self.series)
        return each

    def _act(self, each: Simulated) -> None:
        """What a process does each second if it is not paused."""
        self.now = each
        if each.held:
            self._as_holder(each, lambda held: held.renew() if self._age(held) >= lease.RENEW_SECONDS else None)
        elif each.lost:
            try:
                each.held = lease._take(Path(self.folder.name), "iter1/scores", each.lost)
            except UserError:
                each.alive = False
            else:
                server_time = self.random.uniform(0, 4e9)  # the file server's clock
                os.utime(each.held.path, (server_time, server_time))
        elif each.watch:
            alive = each.watch.is_alive(self._is_over)
            each.lost = each.watch.seen if alive is False else None
            each.alive = alive is not True
            if each.lost and self.random.random() < 0.5:
                self._act(each)
            elif each.lost and self.random.random() < 0.5:
                each.paused = True

    def _as_holder(self, each: Simulated, do: Callable[[lease.Held], None]) -> bool:
        assert each.held
        try:
            do(each.held)
        except EndedError:
            assert each.was_paused, "a holder that renewed in time lost its lease"
            each.alive = False
        return each.alive

    def _age(self, held: lease.Held) -> float:
        return self._since_boot() - held.renewed

    def _second(self) -> None:
        self.seconds += 1
        self.processes = self._living()
        if not any(each.held is None for each in self._living()):
            self._start(self.random.choice(PLACES), self.random.choice(["", str(1000 + self.number), "666"]))
        for each in self.random.sample(self.processes, len(self.processes)):
            if each.alive and not each.paused:
                self._act(each)

    def _living(self) -> list[Simulated]:
        return [each for each in self.processes if each.alive]

    @rule(seconds=st.sampled_from([1, 25, 70, 200]))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self._second()

    @rule(seconds=st.sampled_from([30, 70, 200]))
    def the_file_server_hangs(self, seconds: int) -> None:
        self.seconds += seconds

    @rule()
    def all_continue_and_act(self) -> None:
        for each in self.random.choices(self._living(), k=6) if self._living() else []:
            each.paused = False
            if each.alive and each.held and self.random.random() < 0.7:
                self._write(each)
            elif each.alive:
                self._act(each)

    @precondition(lambda self: self._holders())
    @rule(choice=st.integers(0, 99), what=st.sampled_from(["pause", "pause", "continue", "kill", "release", "write"]))
    def a_holder(self, choice: int, what: str) -> None:
        each = self._holders()[choice % len(self._holders())]
        if what == "pause":
            each.paused = each.was_paused = True
        elif what == "continue":
            each.paused = False
        elif what == "kill":
            each.alive = False
        elif each.paused:
            return
        elif what == "write":
            self._write(each)
        elif each.held:
            leasefile.release(each.held.path)
            each.alive = False

    def _holders(self) -> list[Simulated]:
        """The living processes that took the lease, also those that do not know yet that they have lost it."""
        return [each for each in self._living() if each.held]

    def _write(self, each: Simulated) -> None:
        self.now = each
        self.patch.setattr(lease, "_held", [each.held])
        if self._as_holder(each, lambda _: lease.require_held()):
            newest = leasefile.newest(self.series)
            assert newest.holder == each.record, "two processes write"

    @rule(place=st.sampled_from(PLACES), seconds=st.sampled_from([-(10**8), -3600.0, -20.0, 0.1, 200.0, 10.0**8]))
    def a_clock_is_set(self, place: str, seconds: float) -> None:
        self.time_of_day[place] += seconds

    @invariant()
    def one_process_believes_that_it_holds_the_lease(self) -> None:
        sure = []
        for each in self._living() if hasattr(self, "processes") else []:
            self.now = each
            if each.held and self._age(each.held) <= lease.LOOK_SECONDS:
                sure.append(each.record)
        assert len(sure) <= 1


def test_one_holder_at_a_time_whatever_happens() -> None:
    run_state_machine_as_test(
        Leases,
        settings=settings(max_examples=50, stateful_step_count=30, deadline=None, derandomize=True, database=None),
    )

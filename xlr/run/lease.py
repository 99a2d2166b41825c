"""Leases: at most one process writes an artefact. A process renews the leases that it holds; a dead one loses them.

A lease is the file with the highest number in a folder such as `RUN/leases/iter1/responses`. A process takes the lease
by creating the file with the next number. Only one of two processes can create it. This also works on network file
systems, where `flock` may lock on one node only. Numbers are not reused: a slow process that saw a dead holder cannot
take the lease from the next holder.

A holder is dead in any of these cases: its process does not exist any more, which only the same machine can see; Slurm
has ended or restarted its job; or it has not renewed the lease for `STALE_SECONDS`.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xlr.cluster import slurm as scheduler
from xlr.console import console
from xlr.errors import UserError

RENEW_SECONDS = 20.0
STALE_SECONDS = 180.0  # longer than network file systems cache file times and than a busy holder may pause

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Hold the leases of these names while the block runs.

    Raises:
        UserError: another process holds one.
    """
    taken: list[Path] = []
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(taken, ended), daemon=True)
    try:
        for name in names:
            taken.append(_take(folder / name, folder.parent))
        renewing.start()
        yield
    finally:
        ended.set()
        if renewing.is_alive():
            renewing.join()
        for lease in taken:
            lease.write_text(json.dumps({"released": True}), encoding="utf-8")


def holder(folder: Path, name: str) -> str | None:
    """A description of the process that holds a lease, if one does."""
    newest = _newest(folder / name)
    if newest is None or _lost(newest, _now(folder)):
        return None
    return _describe(_read(newest))


def _take(series: Path, run: Path) -> Path:
    series.mkdir(parents=True, exist_ok=True)
    newest = _newest(series)
    if newest is not None:
        _wait_until_lost(newest, run)
    number = int(newest.name) + 1 if newest else 1
    lease = series / f"{number:06d}"
    try:
        with lease.open("x", encoding="utf-8") as file:
            json.dump(_ourselves(), file)
    except FileExistsError:
        raise _refusal(lease, run) from None
    return lease


def _wait_until_lost(lease: Path, run: Path) -> None:
    """Wait until the holder is known to be dead. A holder that renews its lease meanwhile is alive.

    Raises:
        UserError: the holder is alive.
    """
    renewed = _renewed(lease)
    looks = 0
    while not _lost(lease, _now(lease.parent)):
        if _is_here(_read(lease)) or _renewed(lease) != renewed:
            raise _refusal(lease, run)
        looks += 1
        if looks == 2:  # at the first look, a new holder may not have written who it is
            console.print(
                f"{_title(lease)}: held by {_describe(_read(lease))}; "
                f"waiting up to {STALE_SECONDS:g} s to see whether that process is alive"
            )
        time.sleep(1)


def _refusal(lease: Path, run: Path) -> UserError:
    return UserError(
        f"{run}: {_title(lease)} is in use by another xlr ({_describe(_read(lease))}); wait until it ends, or end it"
    )


def _title(lease: Path) -> str:
    return f"{lease.parent.parent.name}/{lease.parent.name}"


def _renew(leases: Sequence[Path], ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        for lease in leases:
            try:
                os.utime(lease)  # without a time: the file server sets it, and its clock is the same for all nodes
                lost = _newest(lease.parent) != lease
            except OSError as error:
                _log.warning("%s could not be renewed: %s", lease, error)
                continue
            if lost:
                # This process paused for so long that another took the lease. It must not write any more.
                console.print(f"error: {_title(lease)}: another xlr took over while this one was paused; this one ends")
                os._exit(1)


def _newest(series: Path) -> Path | None:
    return max(series.glob("[0-9]*"), default=None)


def _read(lease: Path) -> dict[str, Any]:
    """What the holder wrote about itself; empty while it is writing, or if it died while writing."""
    try:
        return dict(json.loads(lease.read_text(encoding="utf-8")))
    except json.JSONDecodeError:
        return {}


def _lost(lease: Path, now: float) -> bool:
    """Whether the holder released the lease or is dead."""
    record = _read(lease)
    if record.get("released") or now - _renewed(lease) > STALE_SECONDS:
        return True
    if _is_here(record):
        return _started(record["pid"]) != record["started"]
    if "job" not in record:
        return False
    mine = _ourselves()
    if mine.get("job") == record["job"] and mine["restart"] > record["restart"]:
        return True
    return scheduler.is_over(record["job"], record["restart"])


def _renewed(lease: Path) -> float:
    with lease.open() as file:  # opening asks the file server; stat alone may be answered from a cache
        return os.fstat(file.fileno()).st_mtime


def _now(folder: Path) -> float:
    """The file server's time."""
    clock = folder / ".clock"
    clock.touch()
    return _renewed(clock)


def _ourselves() -> dict[str, Any]:
    """What others need to see whether this process is alive: machine, process and Slurm job."""
    record = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "place": _place()}
    if "SLURM_JOB_ID" in os.environ:
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        record |= {"job": os.environ["SLURM_JOB_ID"], "restart": restarts}
    return record


def _is_here(record: dict[str, Any]) -> bool:
    """Whether a holder's process id is valid here: same machine since the same boot, and same PID namespace."""
    return record.get("place") == _place()


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> str | None:
    """The start time of a process in clock ticks since boot; None if the process does not exist."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = status.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def _describe(record: dict[str, Any]) -> str:
    if "pid" not in record:
        return "a process that has just started"
    job = f", Slurm job {record['job']}" if "job" in record else ""
    return f"process {record['pid']} on {record['host']}{job}"

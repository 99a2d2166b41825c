"""Who may write an artefact: leases that their holders renew, and that dead holders lose.

A lease is the file of the highest number in a folder such as `RUN/leases/iter1/responses`. To take it is to create the
next number, which only one of two processes can do, on network file systems too, where `flock` may reach no further
than its own node. Numbers are never used again, so a slow process cannot take for dead the holder that came after the
one it looked at.
A holder is dead when its process is gone, where that can be seen from here; when Slurm has ended its job, or started
it anew; or when it has not renewed the lease for `STALE_SECONDS`.
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
STALE_SECONDS = 180.0  # above what network file systems remember of a file's times, and a holder may be held up

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
    """Who holds a lease now, if anybody."""
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
    """Until the holder is known to be dead; a holder that renews its lease meanwhile is alive.

    Raises:
        UserError: it is alive.
    """
    renewed = _renewed(lease)
    looks = 0
    while not _lost(lease, _now(lease.parent)):
        if _is_here(_read(lease)) or _renewed(lease) != renewed:
            raise _refusal(lease, run)
        looks += 1
        if looks == 2:  # at the first it may be about to write down who it is
            console.print(
                f"{_title(lease)}: {_describe(_read(lease))} held it last; "
                f"waiting up to {STALE_SECONDS:g} s to see whether it is alive"
            )
        time.sleep(1)


def _refusal(lease: Path, run: Path) -> UserError:
    return UserError(
        f"{run}: {_title(lease)} is in use by another xlr ({_describe(_read(lease))}); wait for it, or end it"
    )


def _title(lease: Path) -> str:
    return f"{lease.parent.parent.name}/{lease.parent.name}"


def _renew(leases: Sequence[Path], ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        for lease in leases:
            try:
                os.utime(lease)  # without a time: the file server's clock, the same for all nodes
                lost = _newest(lease.parent) != lease
            except OSError as error:
                _log.warning("%s could not be renewed: %s", lease, error)
                continue
            if lost:
                # Held up for so long that another has taken over: not one more byte may be written.
                console.print(f"error: {_title(lease)}: another xlr took over; this one ends")
                os._exit(1)


def _newest(series: Path) -> Path | None:
    return max(series.glob("[0-9]*"), default=None)


def _read(lease: Path) -> dict[str, Any]:
    """The holder's own words; nothing while it writes them, or if it died then."""
    try:
        return dict(json.loads(lease.read_text(encoding="utf-8")))
    except json.JSONDecodeError:
        return {}


def _lost(lease: Path, now: float) -> bool:
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
    with lease.open() as file:  # opening asks the file server, where a bare stat may be answered from memory
        return os.fstat(file.fileno()).st_mtime


def _now(folder: Path) -> float:
    """The file server's time."""
    clock = folder / ".clock"
    clock.touch()
    return _renewed(clock)


def _ourselves() -> dict[str, Any]:
    """Who this process is, and where and by what it can be seen to live."""
    record = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "place": _place()}
    if "SLURM_JOB_ID" in os.environ:
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        record |= {"job": os.environ["SLURM_JOB_ID"], "restart": restarts}
    return record


def _is_here(record: dict[str, Any]) -> bool:
    """Whether a holder's process number means something to us: the same boot of a machine, and the same namespace."""
    return record.get("place") == _place()


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the boot; None if there is none."""
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

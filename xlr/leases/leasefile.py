"""The files of leases. See `lease` for their meaning.

A series is a folder such as `RUN/leases/iter1/responses`. Its newest lease is the file with the highest number. If that
is damaged, or is no file at all, it is a lease whose holder is not known.
"""

import contextlib
import errno
import json
import logging
import os
import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from xlr.leases import process

_RELEASED = json.dumps({"released": True}).encode()
_NAME = re.compile(r"[0-9]{6}|[1-9][0-9]{6,17}")
_KEPT = 16  # older leases of a series are removed
_MOST_BYTES = 1 << 16
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO)

_log = logging.getLogger(__name__)


class Holder(BaseModel, frozen=True, strict=True):
    """What a holder writes about itself, so that others can see whether it is alive."""

    host: str = Field(max_length=255, pattern=r"^[0-9A-Za-z_.-]+$")
    pid: int = Field(gt=0)
    started: str = Field(pattern=r"^[0-9]{1,20}$")
    place: str
    job: str = Field("", pattern=r"^[0-9]{0,20}$")
    """Its Slurm job; empty outside Slurm."""
    restart: int = 0
    """How often Slurm has restarted the job."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", Slurm job {self.job}" if self.job else "")


@dataclass(frozen=True)
class Look:
    """What a series of leases showed when this process looked at its newest lease."""

    number: int = 0
    """The lease's number; 0 if there is no lease."""
    released: bool = True
    holder: Holder | None = None
    """None while the holder writes its record, and if the file is damaged."""
    renewed: int = 0
    """The file's time in nanoseconds since 1970."""

    @property
    def user(self) -> str:
        """The holder in messages."""
        return str(self.holder or "a process that has just started")


def ourselves() -> Holder:
    """The record of this process."""
    pid = os.getpid()
    started = process.started(pid) or "0"
    host = re.sub(r"[^0-9A-Za-z_.-]", "-", socket.gethostname()) or "-"
    job, restart = own_job()
    return Holder(host=host, pid=pid, started=started, place=process.place(), job=job, restart=restart)


def own_job() -> tuple[str, int]:
    """The Slurm job of this process, empty outside Slurm, and how often Slurm has restarted it."""
    return os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def path_of(series: Path, number: int) -> Path:
    """The file of the lease with this number."""
    return series / f"{number:06d}"


def newest(series: Path) -> Look:
    """The newest lease of a series.

    Raises:
        OSError: the file system does not answer.
    """
    number = _newest_number(series)
    if number == 0:
        return Look()
    path = path_of(series, number)
    try:
        with _opened(path, os.O_RDONLY) as descriptor:  # asks the file server; stat may be answered from a cache
            content, time_ns = os.read(descriptor, _MOST_BYTES), os.fstat(descriptor).st_mtime_ns
    except FileNotFoundError:
        return Look(number, released=False)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        content, time_ns = b"", path.lstat().st_mtime_ns
    if content == _RELEASED:
        return Look(number, released=True, renewed=time_ns)
    try:
        return Look(number, released=False, holder=Holder.model_validate_json(content), renewed=time_ns)
    except ValidationError:
        return Look(number, released=False, renewed=time_ns)


def create(series: Path, number: int, holder: Holder) -> Path:
    """Create a lease.

    Raises:
        FileExistsError: another process has created it, or a later one.
    """
    path = path_of(series, number)
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        try:
            os.write(descriptor, holder.model_dump_json().encode())
            os.fsync(descriptor)  # after a power cut, others still read that this process is gone
        except OSError:
            path.unlink(missing_ok=True)
            raise
    # This process may have been so slow that the lease after the one that it saw was taken, released and removed.
    if _newest_number(series) != number:
        path.unlink(missing_ok=True)
        raise FileExistsError(path)
    return path


def tidy(series: Path, lost: int) -> None:
    """Remove leases that were lost long ago."""
    for name in os.listdir(series):
        if _NAME.fullmatch(name) and int(name) <= lost - _KEPT:
            with contextlib.suppress(OSError):
                (series / name).unlink()


def release(path: Path) -> None:
    """Let others take the lease."""
    try:
        with _opened(path, os.O_WRONLY | os.O_TRUNC) as descriptor:
            os.write(descriptor, _RELEASED)
    except OSError as error:
        _log.warning("%s could not be released: %s", path, error)


def _newest_number(series: Path) -> int:
    try:
        return max((int(name) for name in os.listdir(series) if _NAME.fullmatch(name)), default=0)
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Open a regular file, without following a link and without waiting for the writer of a pipe.

    Raises:
        OSError: it is something else (with errno ELOOP), or cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ELOOP, "not a regular file", str(path))
        yield descriptor
    finally:
        os.close(descriptor)

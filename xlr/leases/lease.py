"""Leases: at most one process writes an artefact. A process renews the leases that it holds; a dead one loses them.

A lease is the file with the highest number in a folder such as `RUN/leases/iter1/responses`. A process takes the lease
by creating the file with the next number. Only one of two processes can create it. This also works on network file
systems, where `flock` may lock on one node only.

A holder is dead if its process does not exist any more, which can be asked in the same place (see `process`). Otherwise
others watch the lease: a holder renews it every `RENEW_SECONDS`, and it is dead if it did not do so for `STALE_SECONDS`
on the clock of the process that watches; for `OVER_SECONDS` if Slurm has ended or restarted its job. Every change of
the file is a renewal. Its age says nothing, because the clocks of other machines may be wrong and may be set.

A holder that paused may have lost its lease. It can rely on the lease for `VALID_SECONDS` after a renewal, half of what
others wait at least. After that it must take the next number like any other process. If it cannot, it ends at once.
"""

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from xlr.cluster import slurm as scheduler
from xlr.errors import UserError
from xlr.leases import leasefile, process
from xlr.leases.leasefile import Holder, Look
from xlr.terminal.console import console

RENEW_SECONDS = 20.0
VALID_SECONDS = 30.0
OVER_SECONDS = 60.0  # a node that has lost Slurm's controller may still run the processes of a job that has ended
STALE_SECONDS = 180.0  # longer than network file systems cache file times and than a busy holder may pause
LOOK_SECONDS = 1.0

_log = logging.getLogger(__name__)


class InUseError(UserError):
    """Another living process holds the lease."""


@dataclass(eq=False)
class Held:
    """A lease that this process holds."""

    path: Path
    holder: Holder
    renewed: float
    """When the last renewal began, in seconds since boot."""
    stamp: float = 0.0
    """The file's time, which every renewal increases."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def renew(self) -> None:
        """Renew the lease, and end this process if another one has taken it.

        Raises:
            OSError: the file system does not answer.
        """
        with self.lock:
            now = _now()
            try:
                if now - self.renewed > VALID_SECONDS:  # others may have seen that this process does not renew it
                    self.path = leasefile.create(self.path.parent, int(self.path.name) + 1, self.holder)
                self.stamp = max(time.time(), self.stamp + 1)
                os.utime(self.path, (self.stamp, self.stamp))
            except (FileExistsError, FileNotFoundError):
                _end(self.path)
            look = leasefile.newest(self.path.parent)
            if look.number != int(self.path.name) or look.holder != self.holder:
                _end(self.path)
            self.renewed = now


_held: list[Held] = []  # by this process
os.register_at_fork(after_in_child=_held.clear)


@contextlib.contextmanager
def held(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Hold the leases of these names while the block runs.

    Raises:
        InUseError: another process holds one.
        UserError: the leases cannot be read or written.
    """
    taken: list[Held] = []
    ended = threading.Event()
    renewing = threading.Thread(target=_keep, args=(taken, ended), daemon=True)
    try:
        with _usable(folder):
            for name, look in _lost(folder, names).items():
                taken.append(_take(folder, name, look))
        _held.extend(taken)
        renewing.start()
        yield
    finally:
        ended.set()
        if renewing.is_alive():
            renewing.join()
        for lease in taken:
            if lease in _held:
                _held.remove(lease)
            leasefile.release(lease.path)


@contextlib.contextmanager
def awaited(folder: Path, name: str, purpose: str) -> Iterator[None]:
    """Hold a lease while the block runs, after waiting until no other process holds it.

    Args:
        purpose: what this process waits to do, for the user.

    Raises:
        UserError: the leases cannot be read or written.
    """
    with contextlib.ExitStack() as stack:
        said = False
        while True:
            if found := first_holder(folder, [name], say=not said):
                if not said:
                    console.print(f"{purpose}: waits for {found[1]}, which does the same")
                said = True
                time.sleep(LOOK_SECONDS)
                continue
            try:
                stack.enter_context(held(folder, [name]))
            except InUseError:  # another process that waited was faster
                continue
            break
        yield


def require_held() -> None:
    """End this process if another one has taken one of its leases, which may happen while it is stopped.

    Called before a file is finished.

    Raises:
        OSError: the file system does not answer.
    """
    for lease in _held:
        if _now() - lease.renewed > LOOK_SECONDS:
            lease.renew()


def holder(folder: Path, name: str) -> str | None:
    """The process that seems to hold a lease, in words. The answer comes at once and can be wrong; for display only."""
    with _usable(folder):
        look = leasefile.newest(folder / name)
    alive = _is_alive(look)
    if alive is None:
        alive = abs(time.time() - look.renewed / 1e9) <= STALE_SECONDS and not _is_over(look, scheduler.is_over)
    return look.user if alive else None


def first_holder(folder: Path, names: Sequence[str], say: bool = True) -> tuple[str, str] | None:
    """The first of these leases that a living process holds, and this process in words.

    Waits up to `STALE_SECONDS` where only the renewals show whether the holder is alive.
    """
    with _usable(folder):
        return next(((name, look.user) for name, look, alive in _verdicts(folder, names, say) if alive), None)


def _lost(folder: Path, names: Sequence[str]) -> dict[str, Look]:
    """The newest lease of each name, after waiting until it is known that no living process holds it.

    Raises:
        InUseError: a living process holds one.
    """
    lost = {}
    for name, look, alive in _verdicts(folder, names):
        if alive:
            raise _refusal(folder, name, look)
        lost[name] = look
    return lost


def _verdicts(folder: Path, names: Sequence[str], say: bool = True) -> Iterator[tuple[str, Look, bool]]:
    """Each name with its newest lease and whether a living process holds it, as soon as that is known."""
    open_cases = {name: Watch(folder / name) for name in names}
    rounds = 0
    while open_cases:
        if rounds % RENEW_SECONDS == 0:
            is_over = functools.cache(scheduler.is_over)  # Slurm's controller is not asked at every look
        for name, watch in list(open_cases.items()):
            alive = watch.is_alive(is_over)
            if alive is not None:
                del open_cases[name]
                yield name, watch.seen, alive
        rounds += 1
        if say and rounds == 2 and open_cases:  # at the first look, a new holder may not have written its record
            _say_waiting({name: watch.seen for name, watch in open_cases.items()})
        if open_cases:
            time.sleep(LOOK_SECONDS)


class Watch:
    """Observes a series until it is known whether a living process holds its newest lease."""

    def __init__(self, series: Path) -> None:
        self.series = series
        self.seen = leasefile.newest(series)
        self._looked = time.monotonic()
        self._unchanged = 0.0

    def is_alive(self, is_over: Callable[[str, int], bool]) -> bool | None:
        """Look again: whether the holder is alive, or None if that is not known yet.

        Args:
            is_over: whether Slurm has ended or restarted a job; see `slurm.is_over`.
        """
        before, self.seen = self.seen, leasefile.newest(self.series)
        # If this process or the file server paused, the holder's renewals may be late, too: the pause does not count.
        now = time.monotonic()
        self._unchanged += min(now - self._looked, 2 * LOOK_SECONDS)
        self._looked = now
        alive = _is_alive(self.seen)
        if alive is None and self.seen != before:
            return True
        if alive is None and self._unchanged >= OVER_SECONDS:
            limit = OVER_SECONDS if _is_over(self.seen, is_over) else STALE_SECONDS
            return False if self._unchanged >= limit else None
        return alive


def _is_alive(look: Look) -> bool | None:
    """Whether a living process holds the lease; None if this process cannot ask."""
    if look.released:
        return False
    if look.holder and look.holder.place == process.place():
        return process.is_alive(look.holder.pid, look.holder.started)
    return None


def _is_over(look: Look, is_over: Callable[[str, int], bool]) -> bool:
    """Whether Slurm has ended or restarted the holder's job."""
    if not look.holder or not look.holder.job:
        return False
    job, restart = leasefile.own_job()
    return (look.holder.job == job and look.holder.restart < restart) or is_over(look.holder.job, look.holder.restart)


def _take(folder: Path, name: str, lost: Look) -> Held:
    """Take the lease after the one that its holder has lost.

    Raises:
        InUseError: another process was faster.
    """
    series, begun, ourselves = folder / name, _now(), leasefile.ourselves()
    series.mkdir(parents=True, exist_ok=True)
    try:
        path = leasefile.create(series, lost.number + 1, ourselves)
    except FileExistsError:
        raise _refusal(folder, name, leasefile.newest(series)) from None
    if lost.holder:  # if it continues, it sees this even on a node that still sees the old list of files
        leasefile.release(leasefile.path_of(series, lost.number))
    leasefile.tidy(series, lost.number)
    return Held(path, ourselves, begun)


def _keep(leases: Sequence[Held], ended: threading.Event) -> None:
    """Renew the leases. Looks at the clock often, to notice soon that this process or the machine paused."""
    while not ended.wait(LOOK_SECONDS):
        for lease in leases:
            if _now() - lease.renewed < RENEW_SECONDS:
                continue
            try:
                lease.renew()
            except OSError as error:
                _log.warning("%s could not be renewed: %s", lease.path, error)
                ended.wait(LOOK_SECONDS)


def _end(lease: Path) -> NoReturn:
    title = f"{lease.parent.parent.name}/{lease.parent.name}"
    console.print(
        f"error: {title}: another xlr took over while this one was paused, or the lease was deleted; this one ends"
    )
    os._exit(1)  # nothing may be written any more, not even by exception handlers


def _now() -> float:
    """Seconds since boot, counting the time in which the machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _say_waiting(cases: dict[str, Look]) -> None:
    name, look = next(iter(cases.items()))
    others = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
    console.print(
        f"{name}{others}: held by {look.user}; waiting up to {STALE_SECONDS:g} s to see whether that process is alive"
    )


def _refusal(folder: Path, name: str, look: Look) -> InUseError:
    return InUseError(f"{folder.parent}: {name} is in use by another xlr ({look.user}); wait until it ends, or end it")


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: this lease cannot be read or written ({error.strerror}); correct that, or "
            f"delete {folder} if no xlr uses this run directory"
        ) from error

"""Which process this is, and whether another process is alive.

A process id says something only on the same machine since the same boot and in the same PID namespace: in one place. A
process that started later can get the id of one that ended, so the start time belongs to it.
"""

import hashlib
import os
import re
import secrets
import time
from functools import cache
from pathlib import Path

TEMPORARY_SECONDS = 86400.0  # no file takes a day to write

_TOKEN = re.compile(r"([0-9a-f]{8})-([0-9]{1,18})-([0-9]{1,18})-[0-9a-f]{8}")


@cache
def place() -> str:
    """The machine, its boot and the PID namespace of this process."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def started(pid: int) -> str | None:
    """The start time of a process of this place, in clock ticks since boot; None if it does not exist or has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = status.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def is_alive(pid: int, start: str) -> bool:
    """Whether the process of this place with this id and start time exists. A stopped process is alive."""
    try:
        if Path(f"/proc/{pid}").exists():
            return started(pid) == start
        os.kill(pid, 0)  # signal 0 only asks
    except PermissionError:
        return True  # another user's process, which /proc may hide (its mount option hidepid)
    except (ProcessLookupError, OverflowError):
        return False
    return started(pid) == start  # it began between the two questions


def token() -> str:
    """A part of a temporary file's name that names this process and is used once: letters, digits and hyphens."""
    pid = os.getpid()
    return f"{_short(place())}-{pid}-{started(pid)}-{secrets.token_hex(4)}"


def may_be_alive(text: str, modified: float) -> bool:
    """Whether the process that called `token` may still be alive.

    Args:
        text: the token, or what a file name has in its place.
        modified: when the temporary file was last modified, in seconds since 1970.

    A process of another place, or an unknown one, counts as alive until the file is `TEMPORARY_SECONDS` old.
    """
    found = _TOKEN.fullmatch(text)
    if found and found[1] == _short(place()):
        return is_alive(int(found[2]), found[3])
    return time.time() - modified < TEMPORARY_SECONDS


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]

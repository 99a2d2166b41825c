"""Kills a run just before changes of its folder. Python imports this module at its start, by its name.

Notes the calls that rename, remove or create something in the folder XLR_CRASH_RUN, over all processes of a run and all
its starts, in the file XLR_CRASH_SEEN: each once, without random parts of names and numbers of leases. Before every
XLR_CRASH_STEP-th new one, it kills every process of the run. With XLR_CRASH_POWER, it then cuts every file in half that
was not flushed to disk at its present size, as a power cut might.
"""

import fcntl
import os
import re
import signal

_RUN = os.environ.get("XLR_CRASH_RUN", "")
_SEEN = os.environ.get("XLR_CRASH_SEEN", "")
_STEP = int(os.environ.get("XLR_CRASH_STEP", "0"))
_FLUSHED = f"{_SEEN}.flushed"


def _append(path, line):
    """Append a line to a file, unless it has it; return how many lines it has now, or 0 if it had this one."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
        if line in lines:
            return 0
        os.write(descriptor, f"{line}\n".encode())
        return len(lines) + 1
    finally:
        os.close(descriptor)


def _counted(name):
    original = getattr(os, name)

    def call(path, *arguments, **keywords):
        text = "" if isinstance(path, int) else os.fsdecode(path)
        if "dir_fd" in keywords and keywords["dir_fd"] is not None:
            text = os.path.join(os.readlink(f"/proc/self/fd/{keywords['dir_fd']}"), text)
        if os.path.abspath(text).startswith(_RUN + os.sep):
            changed = re.sub(r"\.[0-9a-f]+-[-0-9a-f]+\.tmp", ".tmp", os.path.relpath(text, _RUN))
            changed = re.sub(r"^(leases/.*/)[0-9]+$", r"\1NUMBER", changed)  # each start takes the next one
            changed = re.sub(r"^verdicts/[0-9a-f]{16}", "verdicts/NAME", changed)  # each process writes its own
            number = _append(_SEEN, f"{name} {changed}")
            if number and _STEP and number % _STEP == _STEP // 2:
                _crash()
        return original(path, *arguments, **keywords)

    setattr(os, name, call)


def _crash():
    """End all processes that inherited this environment, this one last."""
    mark = f"XLR_CRASH_RUN={_RUN}\0".encode()
    for _ in range(3):  # again for those that were just being started
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    ours = mark in file.read() + b"\0"
                if ours and int(pid) != os.getpid():
                    os.kill(int(pid), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue
    if os.environ.get("XLR_CRASH_POWER"):
        _lose_unflushed()
    os.kill(os.getpid(), signal.SIGKILL)


def _lose_unflushed():
    try:
        with open(_FLUSHED, encoding="utf-8") as file:
            flushed = {line.rstrip("\n") for line in file}
    except FileNotFoundError:
        flushed = set()
    for folder, _, names in os.walk(_RUN):
        for name in names:
            status = os.stat(os.path.join(folder, name))
            if f"{status.st_ino} {status.st_size}" not in flushed:
                os.truncate(os.path.join(folder, name), status.st_size // 2)


if _RUN:
    for _name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir"):
        _counted(_name)
    _fsync = os.fsync

    def _note_flush(descriptor):
        _fsync(descriptor)
        status = os.fstat(descriptor if isinstance(descriptor, int) else descriptor.fileno())
        _append(_FLUSHED, f"{status.st_ino} {status.st_size}")

    os.fsync = _note_flush

"""Starts training ranks on this machine and waits for them."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from xlr.cluster import preemption
from xlr.cluster.environment import ALLOCATOR, SAFE_PATH
from xlr.cluster.preemption import Preempted
from xlr.cluster.ranks import RENDEZVOUS
from xlr.cluster.scratch import PrivateFolder
from xlr.errors import UserError
from xlr.terminal.console import console

ERROR_FILE = "XLR_ERROR_FILE"
"""Environment variable with the path of a file. A rank writes a message about bad input there for the launcher."""

_LAUNCHER = "XLR_LAUNCHER"  # environment variable of a rank: the launcher's process id
_PR_SET_PDEATHSIG = 1

_TAIL_LINES = 30
_LOOK_SECONDS = 5.0
_STOPPED_LOOKS = 6  # half a minute: sooner than another process can take a lease that the launcher does not renew


def spawn(arguments: list[str], processes: int, log: Path) -> None:
    """Run `xlr ARGUMENTS` as several ranks on this machine and wait for them; start them again where one asks for it.

    Rank 0 writes to this process's standard output. All ranks write their standard error to the log. If one rank fails,
    the others are killed. All ranks die with this process, however it ends, and end if it is stopped for half a minute.
    SIGTERM and SIGUSR1 are forwarded to them. Nothing in the current folder is imported.

    Raises:
        UserError: a rank found bad input.
        Preempted: a signal asked the ranks to end, and they saved a checkpoint.
        RuntimeError: a rank failed; the message ends with the last lines of the log.
    """
    error_file = log.with_suffix(".error")
    error_file.unlink(missing_ok=True)
    while preemption.AGAIN_CODE in (codes := _run(arguments, processes, log, error_file)):
        console.print(f"  memory ran out: all ranks start again with smaller micro-batches; see {log}")
    if set(codes) == {preemption.EXIT_CODE}:
        raise Preempted("training ended early; a checkpoint is saved: start again to continue")
    if error_file.is_file():
        message = error_file.read_text(encoding="utf-8")
        error_file.unlink()
        raise UserError(message)
    if any(codes):
        rank = next(rank for rank, code in enumerate(codes) if code)
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])
        raise RuntimeError(f"rank {rank} of {processes} ended with code {codes[rank]}; {log} ends with:\n{tail}")


def _run(arguments: list[str], processes: int, log: Path, error_file: Path) -> list[int]:
    """Start the ranks, wait for them, and return their exit codes."""
    with contextlib.ExitStack() as ending:
        errors = ending.enter_context(log.open("ab"))
        folder = PrivateFolder()
        ending.callback(folder.remove)
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "xlr", *arguments],
                env=_environment(rank, processes, folder.path / "rendezvous", error_file),
                cwd=None if sys.version_info >= (3, 11) else "/",  # older versions ignore PYTHONSAFEPATH
                stdout=None if rank == 0 else errors,
                stderr=errors,
                preexec_fn=_die_with_parent,
            )
            for rank in range(processes)
        ]
        ending.enter_context(preemption.passed_on(children))
        return _wait(children)


def free_port() -> int:
    """A port on the loopback interface that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _environment(rank: int, processes: int, rendezvous: Path, error_file: Path) -> dict[str, str]:
    """The environment of a rank. The user's variables override the defaults, but not those that define the rank.

    Ranks meet through a file that only this user can open, and connect to each other over the loopback interface.
    """
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    defaults = ALLOCATOR | {"OMP_NUM_THREADS": threads, "NCCL_SOCKET_IFNAME": "lo"}
    own = {
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_RANK": str(rank),
        RENDEZVOUS: str(rendezvous),
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONUTF8": "1",  # torch reads its source files in the locale's encoding, which fails in the C locale
        ERROR_FILE: str(error_file),
        _LAUNCHER: str(os.getpid()),
    }
    return defaults | dict(os.environ) | SAFE_PATH | own


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_launcher() -> None:
    """In a rank that `spawn` started: end this process when the launcher is gone, or was stopped for half a minute.

    A stopped launcher cannot renew its leases. Another process takes them and writes what this rank would write.
    """
    if _LAUNCHER in os.environ:
        threading.Thread(target=_watch, args=(int(os.environ[_LAUNCHER]),), daemon=True).start()


def _watch(launcher: int) -> None:
    looks = 0
    while os.getppid() == launcher and looks < _STOPPED_LOOKS:
        looks = looks + 1 if _is_stopped(launcher) else 0
        time.sleep(_LOOK_SECONDS)
    print(f"error: the process that started this rank ({launcher}) is gone or stopped; this rank ends", file=sys.stderr)
    os._exit(1)


def _is_stopped(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] in "Tt"


def _wait(children: list[subprocess.Popen[bytes]]) -> list[int]:
    """Wait for all ranks and return their exit codes. After a failure the other ranks are killed: they would hang."""
    try:
        running = set(range(len(children)))
        while running:
            pid, status = os.wait()
            ended = next((rank for rank in running if children[rank].pid == pid), None)
            if ended is None:
                continue
            children[ended].returncode = os.waitstatus_to_exitcode(status)
            running.discard(ended)
            if children[ended].returncode not in (0, preemption.EXIT_CODE):
                break
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
                child.wait()
    return [child.returncode for child in children]

"""Starts training ranks on this machine and waits for them."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from xlr.cluster import preemption
from xlr.cluster.environment import ALLOCATOR
from xlr.cluster.preemption import Preempted
from xlr.errors import UserError

ERROR_FILE = "XLR_ERROR_FILE"
"""Environment variable with the path of a file. A rank writes a message about bad input there for the launcher."""

_PR_SET_PDEATHSIG = 1

_TAIL_LINES = 30


def spawn(arguments: list[str], processes: int, log: Path) -> None:
    """Run `xlr ARGUMENTS` as several ranks on this machine and wait for them.

    Rank 0 writes to this process's standard output. All ranks write their standard error to the log. If one rank fails,
    the others are killed. All ranks die with this process, however it ends. SIGTERM and SIGUSR1 are forwarded to them.

    Raises:
        UserError: a rank found bad input.
        Preempted: a signal asked the ranks to end, and they saved a checkpoint.
        RuntimeError: a rank failed; the message ends with the last lines of the log.
    """
    error_file = log.with_suffix(".error")
    error_file.unlink(missing_ok=True)
    port = str(free_port())
    with log.open("ab") as errors:
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "xlr", *arguments],
                env=_environment(rank, processes, port, error_file),
                stdout=None if rank == 0 else errors,
                stderr=errors,
                preexec_fn=_die_with_parent,
            )
            for rank in range(processes)
        ]
        with preemption.passed_on(children):
            codes = _wait(children)
    if set(codes) == {preemption.EXIT_CODE}:
        raise Preempted("training ended on request; a checkpoint is saved: start again to continue")
    if error_file.is_file():
        message = error_file.read_text(encoding="utf-8")
        error_file.unlink()
        raise UserError(message)
    if any(codes):
        rank = next(rank for rank, code in enumerate(codes) if code)
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])
        raise RuntimeError(f"rank {rank} of {processes} ended with code {codes[rank]}; {log} ends with:\n{tail}")


def free_port() -> int:
    """A port on the loopback interface that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _environment(rank: int, processes: int, port: str, error_file: Path) -> dict[str, str]:
    """The environment of a rank. The user's variables override the defaults, but not those that define the rank."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    defaults = ALLOCATOR | {"OMP_NUM_THREADS": threads}
    own = {
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "PYTHONUTF8": "1",  # torch reads its source files in the locale's encoding, which fails in the C locale
        ERROR_FILE: str(error_file),
    }
    return defaults | dict(os.environ) | own


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


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

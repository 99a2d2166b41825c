"""Starts the training ranks on one machine."""

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
"""Environment variable: where a rank writes its message about bad input, for the launcher to show."""

_PR_SET_PDEATHSIG = 1

_TAIL_LINES = 30


def spawn(arguments: list[str], processes: int, log: Path) -> None:
    """Run `xlr ARGUMENTS` as several ranks on this machine and wait for them.

    Rank 0 writes to this process's output; all errors go to the log. If one rank fails the others are killed, and all
    of them die with this process, however it ends. SIGTERM and SIGUSR1 are passed on to the ranks.

    Raises:
        UserError: a rank met bad input.
        Preempted: the ranks saved a checkpoint and ended on request.
        RuntimeError: a rank failed; with the end of the log.
    """
    error_file = log.with_suffix(".error")
    error_file.unlink(missing_ok=True)
    port = str(_free_port())
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
        raise Preempted("training ended on request; what was done is saved: start again to continue")
    if error_file.is_file():
        message = error_file.read_text(encoding="utf-8")
        error_file.unlink()
        raise UserError(message)
    if any(codes):
        rank = next(rank for rank, code in enumerate(codes) if code)
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])
        raise RuntimeError(f"rank {rank} of {processes} ended with code {codes[rank]}; {log} ends with:\n{tail}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _environment(rank: int, processes: int, port: str, error_file: Path) -> dict[str, str]:
    """The environment of a rank; the user's own variables win over our defaults, except for the ranks' own."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    defaults = ALLOCATOR | {"OMP_NUM_THREADS": threads}
    own = {
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "PYTHONUTF8": "1",  # torch reads its own sources in the locale's encoding, and fails in C
        ERROR_FILE: str(error_file),
    }
    return defaults | dict(os.environ) | own


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(children: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes; the first failure ends the other ranks, which would wait for the lost one for ever."""
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

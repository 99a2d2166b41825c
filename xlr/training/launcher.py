"""Ranks: the only place that reads them from the environment, and the launcher for one machine."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xlr.cluster import preemption
from xlr.cluster.preemption import Preempted
from xlr.errors import UserError

ERROR_FILE = "XLR_ERROR_FILE"
_PR_SET_PDEATHSIG = 1

# What processes that compute are started with, unless the user sets it otherwise.
# glibc gives large blocks back to the system at once and gets them again page by page; a training step on CPUs
# spent a third of its time there. Keeping them, in huge pages, costs memory that the next step needs anyway.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
_TAIL_LINES = 30


@dataclass(frozen=True)
class Ranks:
    """Who this process is among the training processes."""

    rank: int
    world_size: int
    local_rank: int


def ranks(environment: Mapping[str, str] = os.environ) -> Ranks | None:
    """This process's ranks, from a launcher (torchrun, deepspeed, xlr itself) or from srun; None outside one.

    Only a job step of several tasks counts: batch scripts and interactive shells have SLURM_PROCID too.
    """
    launcher, step = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    if all(name in environment for name in launcher):
        return Ranks(*(int(environment[name]) for name in launcher))
    if all(name in environment for name in step) and int(environment["SLURM_STEP_NUM_TASKS"]) > 1:
        return Ranks(*(int(environment[name]) for name in step))
    return None


def spawn(arguments: list[str], processes: int, log: Path) -> None:
    """Run `xlr ARGUMENTS` as several ranks on this machine and wait.

    Rank 0 writes to this process's output; all errors go to the log. If one rank fails the others are ended, and
    all end with this process, however it ends. Signals that ask for an end are passed on to the ranks.

    Raises:
        UserError: a rank met bad input.
        Preempted: the ranks saved and ended on request.
        RuntimeError: a rank failed; with the end of the log.
    """
    error_file = log.with_suffix(".error")
    error_file.unlink(missing_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    with log.open("ab") as errors:
        children = []
        for rank in range(processes):
            environment = (
                ALLOCATOR
                | dict(os.environ)
                | {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(processes),
                    "LOCAL_RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
                    "PYTHONUTF8": "1",  # torch reads sources of its own in the locale's encoding, and fails in C
                    ERROR_FILE: str(error_file),
                }
            )
            output = None if rank == 0 else errors
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "xlr", *arguments],
                    env=environment,
                    stdout=output,
                    stderr=errors,
                    preexec_fn=_die_with_parent,
                )
            )
        with preemption.passed_on(children):
            codes = _wait(children)
    if set(codes) == {preemption.EXIT_CODE}:
        raise Preempted("training ended on request; what was done is saved: start again to go on")
    if error_file.is_file():
        message = error_file.read_text(encoding="utf-8")
        error_file.unlink()
        raise UserError(message)
    if any(codes):
        rank = next(rank for rank, code in enumerate(codes) if code)
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])
        raise RuntimeError(f"rank {rank} of {processes} ended with code {codes[rank]}; {log} ends with:\n{tail}")


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

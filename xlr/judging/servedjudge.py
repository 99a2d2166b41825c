"""Starts the judge's server on this node with the command `judge.serve`, and stops it afterwards."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from xlr.cluster.launcher import free_port
from xlr.config import JudgeConfig
from xlr.console import console, duration
from xlr.errors import UserError

_START_SECONDS = 1800  # enough to load a large model from a slow file system
_STOP_SECONDS = 30
_POLL_SECONDS = 0.5


@contextlib.contextmanager
def serving(judge: JudgeConfig, log: Path) -> Iterator[JudgeConfig]:
    """Serve the judge while the block runs; without `judge.serve` do nothing.

    Args:
        log: the file for the server's output.

    Yields:
        The judge's settings, with the server's address as `base_url`.

    Raises:
        UserError: the command cannot be started, exits before the server listens, or does not listen in time.
    """
    if judge.serve is None:
        yield judge
        return
    port = free_port()
    command = [
        word.replace("{model}", str(judge.model)).replace("{port}", str(port)) for word in shlex.split(judge.serve)
    ]
    with log.open("ab") as output:
        try:
            # In a session of its own, so that the server's child processes can be stopped with it.
            server = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        except OSError as error:
            raise UserError(
                f"judge.serve: {command[0]} cannot be started ({error.strerror}); fix the command"
            ) from error
    try:
        _wait_for(server, port, log)
        yield judge.model_copy(update={"base_url": f"http://127.0.0.1:{port}/v1"})
    finally:
        _stop(server)


def _wait_for(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    begun = time.monotonic()
    console.print(f"  judge.serve: waiting for the server on port {port} ({log})")
    while time.monotonic() - begun < _START_SECONDS:
        if server.poll() is not None:
            raise UserError(f"judge.serve: exited with code {server.returncode} before it listened; see {log}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            console.print(f"  judge.serve: the server listens after {duration(time.monotonic() - begun)}")
            return
        time.sleep(_POLL_SECONDS)
    raise UserError(f"judge.serve: does not listen on port {port} after {_START_SECONDS} s; see {log}")


def _stop(server: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)
            return

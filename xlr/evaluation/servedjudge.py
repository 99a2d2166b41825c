"""A judge that is served for as long as it is asked: `judge.serve`, a command on this node."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from xlr.config import JudgeConfig
from xlr.console import console, duration
from xlr.errors import UserError

_START_SECONDS = 1800  # a large model from a slow file system
_END_SECONDS = 30
_LOOK_SECONDS = 0.5


@contextlib.contextmanager
def serving(judge: JudgeConfig, log: Path) -> Iterator[JudgeConfig]:
    """The judge's settings with the address where it answers while the block runs.

    Args:
        log: where the server's output goes, if one is started.

    Raises:
        UserError: the command cannot be started, or ends before anything listens.
    """
    if judge.serve is None:
        yield judge
        return
    port = _free_port()
    words = {"{model}": str(judge.model), "{port}": str(port)}
    command = [_filled(word, words) for word in shlex.split(judge.serve)]
    with log.open("ab") as output:
        try:
            # A session of its own, so that what the server starts ends with it.
            server = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        except OSError as error:
            raise UserError(
                f"judge.serve: {command[0]} cannot be started ({error.strerror}); mend the command"
            ) from error
    try:
        _wait_for(server, port, log)
        yield judge.model_copy(update={"base_url": f"http://127.0.0.1:{port}/v1"})
    finally:
        _end(server)


def _filled(word: str, values: Mapping[str, str]) -> str:
    for field, value in values.items():
        word = word.replace(field, value)
    return word


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    begun = time.monotonic()
    console.print(f"  judge.serve: waiting for the server on port {port} ({log})")
    while time.monotonic() - begun < _START_SECONDS:
        if server.poll() is not None:
            raise UserError(f"judge.serve: ended with code {server.returncode} before it listened; see {log}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            console.print(f"  judge.serve: listens after {duration(time.monotonic() - begun)}")
            return
        time.sleep(_LOOK_SECONDS)
    raise UserError(f"judge.serve: does not listen on port {port} within {_START_SECONDS} s; see {log}")


def _end(server: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_END_SECONDS)
            return

"""Starts the judge's server on this node with the command `judge.serve`, and stops it afterwards.

The server gets a key of its own in environment variables, and must refuse requests without it: the node may have other
users. The key of `judge.api_key_variable` is never sent to it.
"""

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xlr.cluster.launcher import free_port
from xlr.errors import UserError
from xlr.settings.config import JudgeConfig
from xlr.terminal.console import console, duration

_START_SECONDS = 1800  # enough to load a large model from a slow file system
_STOP_SECONDS = 30
_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 60
_KEY_VARIABLE = "XLR_JUDGE_KEY"
_KEY_VARIABLES = (_KEY_VARIABLE, "VLLM_API_KEY", "LLAMA_API_KEY")  # what vLLM and llama.cpp read themselves


@dataclass(frozen=True)
class Server:
    """What answers as the judge: its address, None for the client's default, and its key."""

    base_url: str | None
    key: str


@contextlib.contextmanager
def serving(judge: JudgeConfig, log: Path) -> Iterator[Server | None]:
    """Serve the judge while the block runs; without `judge.serve` do nothing.

    Args:
        log: the file for the server's output.

    Yields:
        The server, or None without one.

    Raises:
        UserError: the command cannot be started, exits before the server listens, or does not listen in time; or the
            port is held by another program, or the server takes requests without its key.
    """
    if judge.serve is None:
        yield None
        return
    port, key = free_port(), secrets.token_urlsafe(32)
    found = Server(f"http://127.0.0.1:{port}/v1", key)
    command = [
        word.replace("{model}", str(judge.model)).replace("{port}", str(port)) for word in shlex.split(judge.serve)
    ]
    with log.open("ab") as output:
        try:
            # In a session of its own, so that the server's child processes can be stopped with it.
            server = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | dict.fromkeys(_KEY_VARIABLES, key),
            )
        except OSError as error:
            raise UserError(
                f"judge.serve: {command[0]} cannot be started ({error.strerror}); fix the command"
            ) from error
    try:
        _wait_for(server, found, port, log)
        yield found
    finally:
        _stop(server)


def _wait_for(server: "subprocess.Popen[bytes]", found: Server, port: int, log: Path) -> None:
    begun = time.monotonic()
    console.print(f"  judge.serve: waiting for the server on port {port} ({log})")
    while time.monotonic() - begun < _START_SECONDS:
        if server.poll() is not None:
            raise UserError(f"judge.serve: exited with code {server.returncode} before it listened; see {log}")
        if listeners := _listeners(port):
            if not listeners <= _sockets(server.pid):
                raise UserError(
                    f"judge.serve: another program holds port {port}; start again. A server in a container of Docker "
                    "cannot be told from another program: start it yourself, and set judge.base_url"
                )
            if _require_key(found):
                console.print(f"  judge.serve: the server listens after {duration(time.monotonic() - begun)}")
                return
        time.sleep(_POLL_SECONDS)
    raise UserError(f"judge.serve: does not listen on port {port} after {_START_SECONDS} s; see {log}")


def _listeners(port: int) -> set[str]:
    """The inodes of the sockets that listen on a port of this machine."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                (
                    _,
                    local,
                    _,
                    state,
                    *_,
                ) = fields = line.split()
                if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found


def _sockets(session: int) -> set[str]:
    """The inodes of the sockets that processes of a session have open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(process.name)) == session:
                links = (os.readlink(link) for link in (process / "fd").iterdir())
                found |= {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    return found


def _require_key(server: Server) -> bool:
    """Check that the server takes its key and no other; False while it is not ready.

    Raises:
        UserError: it takes any key, or refuses its own.
    """
    other, own = _status(server, secrets.token_urlsafe(32)), _status(server, server.key)
    if other in (None, 503) or own == 503:  # it loads its model
        return False
    pass_it = (
        f"pass it ${_KEY_VARIABLE} (vLLM and llama.cpp take it from the environment themselves; for others: sh -c "
        f"'... --port {{port}} --api-key \"${_KEY_VARIABLE}\"'), or start the server yourself and set judge.base_url"
    )
    if other not in (401, 403):
        raise UserError(
            f"judge.serve: the server takes requests without its key, from any user of this node; {pass_it}"
        )
    if own in (401, 403):
        raise UserError(f"judge.serve: the server refuses the key of {_KEY_VARIABLE}; {pass_it}")
    return True


def _status(server: Server, key: str) -> int | None:
    """The status of the answer to a request that asks for nothing; None if there is no answer."""
    import httpx

    from xlr.judging.httpclient import BoundedClient

    with BoundedClient(_ANSWER_SECONDS) as client, contextlib.suppress(httpx.HTTPError):
        headers = {"Authorization": f"Bearer {key}"}
        return client.post(f"{server.base_url}/chat/completions", json={}, headers=headers).status_code
    return None


def _stop(server: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)
            return

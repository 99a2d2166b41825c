"""Tests with a Ray cluster of several nodes on this machine: nodes leave and join during a run."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Cli
from tests.rows import read_rows
from tests.waiting import descendants, wait_until
from xlr.records import Response

RAY = Path(sys.executable).with_name("ray")
LONG = ["generate.batch_size=1", "generate.num_samples=24", "ray.actors=null"]


class Cluster:
    """A cluster of nodes with one CPU each, each started by its own `ray start`. The first one is the head."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._folder = folder
        token = folder / "token"
        token.write_text("a" * 64)
        token.chmod(0o600)
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.add("--head", f"--port={self.address.split(':')[1]}", "--include-dashboard=false", f"--temp-dir={folder}")

    def add(self, *options: str) -> subprocess.Popen[bytes]:
        """Start a node and wait until it has joined."""
        log = self._folder / f"node{len(self.nodes)}.log"
        head_or_cluster = options or (f"--address={self.address}",)
        command = [RAY, "start", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1", *head_or_cluster]
        with log.open("wb") as output:
            node = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | self.environment)
        self.nodes.append(node)
        wait_until(lambda: "Ray runtime started" in log.read_text(encoding="utf-8"), f"a node ({log})")
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Kill every process of a node with SIGKILL."""
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended with another one
                process.kill()
        node.wait()


def worker_on(node: subprocess.Popen[bytes]) -> bool:
    return bool(descendants(node.pid, lambda process: process.name().startswith("ray::RemoteWorker.run")))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path, because it holds sockets
    started = Cluster(folder)
    yield started
    for node in started.nodes:
        if node.poll() is None:
            started.kill(node)
    shutil.rmtree(folder)


def test_every_row_is_computed_once_although_nodes_leave_and_join(
    cluster: Cluster,
    cli: Cli,
    tiny_tree: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
) -> None:
    path = write_config(tiny_tree)
    second = cluster.add()
    log = tmp_path / "log"
    command = [sys.executable, "-m", "xlr", "generate", str(path), *LONG]
    environment = os.environ | cluster.environment | {"RAY_ADDRESS": cluster.address}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    parts = tmp_path / "run" / "iter1" / "responses.parts"
    wait_until(lambda: worker_on(second) and len(list(parts.rglob("*.parquet"))) > 8, "work on both nodes")
    cluster.kill(second)
    third = cluster.add()
    wait_until(lambda: worker_on(third) or process.poll() is not None, "work on the node that joined")
    assert process.wait(timeout=300) == 0, log.read_text(encoding="utf-8")
    assert "another one computes its task" in log.read_text(encoding="utf-8")
    undisturbed = cli("generate", path, *LONG, f"run_dir={tmp_path / 'undisturbed'}")
    assert undisturbed.returncode == 0, undisturbed.stderr
    rows = read_rows(tmp_path / "run" / "iter1" / "responses", Response)
    assert rows == read_rows(tmp_path / "undisturbed" / "iter1" / "responses", Response)
    assert len({(row.lang, row.id, row.sample) for row in rows}) == len(rows) == 2 * 4 * 24


def test_a_client_without_the_token_is_refused(
    cluster: Cluster, cli: Cli, tiny_tree: dict[str, Any], write_config: Callable[[dict[str, Any]], Path]
) -> None:
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 64, "RAY_ADDRESS": cluster.address}
    result = cli("generate", write_config(tiny_tree), **wrong)
    assert result.returncode == 2, result.stderr
    assert f"RAY_ADDRESS={cluster.address}: no Ray cluster answers there" in result.stderr
    assert "RAY_AUTH_TOKEN_PATH" in result.stderr

"""The nodes of a Ray cluster: whether they have joined, and what they have. Takes the ray module as an argument."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from xlr.cluster.environment import SAFE_PATH

_KIND = "accelerator_type:"
_JOIN_SECONDS = 300  # for all nodes of an allocation to join the Ray cluster


@contextlib.contextmanager
def in_safe_folder() -> Iterator[None]:
    """Work in the root folder, where only root can write, while Ray starts.

    Ray adds the driver's current folder to the import path of the workers, and its processes start in it.
    """
    before, path = os.open(".", os.O_RDONLY | os.O_DIRECTORY), os.environ.get("PYTHONSAFEPATH")
    os.chdir("/")
    os.environ.update(SAFE_PATH)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)
        if path is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = path


def wait_for_nodes(ray: Any, names: Sequence[str]) -> None:
    """Wait until all nodes of an allocation have joined the cluster.

    Raises:
        RuntimeError: some did not; names them.
    """
    begun = time.monotonic()
    while absent := set(names) - {node["NodeName"] for node in ray.nodes() if node["Alive"]}:
        if time.monotonic() - begun > _JOIN_SECONDS:
            raise RuntimeError(f"no Ray within {_JOIN_SECONDS} s on {', '.join(sorted(absent))}")
        time.sleep(0.5)


def kinds_of_gpus(ray: Any) -> str:
    """The GPUs of the cluster, as in `cuda H100`; empty if it has none. Ray names their kinds as resources."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("GPU") for node in resources):
        return ""
    kinds = {name.removeprefix(_KIND) for node in resources for name in node if name.startswith(_KIND)}
    return " ".join(["cuda", *sorted(kinds)])


def alive(ray: Any) -> list[tuple[int, int]]:
    """CPUs and GPUs of each node of the cluster."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in resources]

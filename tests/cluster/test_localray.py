"""A local Ray listens on loopback, asks for its token, imports nothing from the current folder, and leaves no file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHADOWS = ("yaml.py", "torch.py", "msgpack.py", "psutil.py", "xlr/__init__.py", "xlr/model/worker.py")

# A driver that starts Ray as xlr does, knocks at every port without the token, and prints what it found.
DRIVER = """
import json, os, pathlib, urllib.error, urllib.request
os.umask(0o077)
import grpc, psutil
from xlr.cluster.raypool import Pool
from xlr.settings.config import RayConfig
from xlr.settings.generateconfig import GenerateConfig
from xlr.settings.modelconfig import ModelConfig

METHODS = (
    "CoreWorkerService/PushTask", "CoreWorkerService/Exit", "NodeManagerService/RequestWorkerLease",
    "NodeInfoGcsService/GetAllNodeInfo", "InternalKVGcsService/InternalKVPut", "ObjectManagerService/Pull",
    "JobInfoGcsService/AddJob", "ActorInfoGcsService/RegisterActor", "NodeManagerService/ShutdownRaylet",
)


def grpc_answers(port):
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        for method in METHODS:
            try:
                channel.unary_unary("/ray.rpc." + method)(b"", timeout=5)
                yield "answers"
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNIMPLEMENTED:  # the process has no such method
                    yield error.code().name


def http_answer(port):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(f"http://127.0.0.1:{port}/get_or_create_runtime_env", data=b"", timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code


pool = Pool(RayConfig(), ModelConfig(initial="i"), GenerateConfig())
pool.start()
folder = pool._folder.path
import ray


@ray.remote(num_cpus=0)
class Look:
    def look(self):
        import os, sys, yaml
        import xlr.model.actor
        return {"path": sys.path, "folder": os.getcwd(), "umask": os.umask(0)}


look = Look.remote()
found = ray.get(look.look.remote())
found["listening"] = sorted({
    (process.name(), one.laddr.ip.removeprefix("::ffff:"), one.laddr.port)
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
    for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN
})
found["without token"] = {}
for name, ip, port in found["listening"]:
    agent = "RuntimeEnv" in name
    found["without token"][f"{name} {port}"] = [http_answer(port)] if agent else sorted(set(grpc_answers(port)))
found["mode"], found["temporary"] = folder.stat().st_mode & 0o777, str(folder)
found["session inside"] = os.path.realpath(ray._private.worker._global_node.get_session_dir_path())
found["own folder"] = [os.getcwd(), os.environ.get("PYTHONSAFEPATH")]
pool.close()
found["left"] = folder.exists()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a driver in a folder of harmful modules finds."""
    folder = tmp_path_factory.mktemp("hostile")
    script = tmp_path_factory.mktemp("driver") / "driver.py"
    script.write_text(DRIVER)
    for name in SHADOWS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"open({str(folder / 'imported')!r}, 'w')\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    result = subprocess.run(
        [sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]) | {"hostile": str(folder)}


def test_every_process_listens_on_loopback_only(found: dict[str, Any]) -> None:
    assert len(found["listening"]) >= 5  # server of the cluster's state, raylet, agent, worker, driver
    assert {ip for _, ip, _ in found["listening"]} == {"127.0.0.1"}


def test_every_port_refuses_a_client_without_the_token(found: dict[str, Any]) -> None:
    for port, answers in found["without token"].items():
        assert answers in (["UNAUTHENTICATED"], [401]), port


def test_workers_import_nothing_from_the_current_folder(found: dict[str, Any]) -> None:
    assert not Path(found["hostile"], "imported").exists()
    assert found["hostile"] not in found["path"]
    assert "" not in found["path"]
    assert found["folder"] == "/"
    assert found["own folder"] == [found["hostile"], None]


def test_files_are_private_and_removed(found: dict[str, Any]) -> None:
    assert found["umask"] == 0o077
    assert found["mode"] == 0o700
    assert Path(found["session inside"]).is_relative_to(found["temporary"])
    assert not found["left"]

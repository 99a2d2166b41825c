"""RAY_ADDRESS is an address, or refused at once."""

import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlr.cluster import rayaddress
from xlr.cluster.raypool import Pool
from xlr.errors import UserError
from xlr.settings.config import RayConfig
from xlr.settings.generateconfig import GenerateConfig
from xlr.settings.modelconfig import ModelConfig

GOOD = ["auto", "127.0.0.1:6379", "node-1.cluster:6379", "node_1:1", "[::1]:6379", "ray://head:10001"]
BAD = [
    "nonsense", " ", "127.0.0.1", ":6379", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:99999", "127.0.0.1:-1", "a:b:6379",
    "http://127.0.0.1:6379", "ray://", "ray://x", "user:pw@head:6379", "127.0.0.1:6379 ", "x\n:1", "é:6379", "١:١",
    "..:80", "AUTO", "a" * 10_000 + ":1", "[::1]", "\x1b[31m:1",
]  # fmt: skip


@pytest.mark.parametrize("address", GOOD)
def test_addresses_are_taken(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert rayaddress.cluster() == address


def test_this_machine_is_used_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert rayaddress.cluster() is None
    for address in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert rayaddress.cluster() is None


@pytest.mark.parametrize("address", BAD)
def test_anything_else_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    pool = Pool(RayConfig(), ModelConfig(initial="i"), GenerateConfig())
    with pytest.raises(UserError, match=r"RAY_ADDRESS='.*: not an address; set it to HOST:PORT") as refused:
        pool.start()
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(address=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30))
def test_any_text_is_taken_or_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    said = "RAY_ADDRESS="
    try:
        found = rayaddress.cluster()
        assert found is None or found == address
    except UserError as error:
        said = str(error)
    assert said.startswith("RAY_ADDRESS=")


@pytest.mark.parametrize("host", ["127.0.0.1", "ray://127.0.0.1", "[::1]", "does-not-exist.invalid", "a..b", "x" * 200])
def test_an_address_where_nothing_listens_is_refused_at_once(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"{host}:{free.getsockname()[1]}")
        pool = Pool(RayConfig(), ModelConfig(initial="i"), GenerateConfig())
        with pytest.raises(UserError, match="no Ray cluster answers there"):
            pool.start()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x"])
def test_another_program_at_the_address_is_told_from_ray(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(said)

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        pool = Pool(RayConfig(), ModelConfig(initial="i"), GenerateConfig())
        with pytest.raises(UserError, match=r"no Ray cluster answers there \(another program listens there\)"):
            pool.start()

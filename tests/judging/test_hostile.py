"""Endpoints that send too much, too slowly, or elsewhere, and servers that are not ours: one message, in time."""

import gzip
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.judgeserver import Judge, longer, serving
from tests.judging.test_endpoint import ask, context, questions
from xlr import configfile
from xlr.errors import UserError
from xlr.judging import endpoint, servedjudge
from xlr.judging.patience import Patience, in_thread

Answer = Callable[[socket.socket], None]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the-real-key")


@contextmanager
def listening(answer: Answer) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads each request and then does `answer` with the connection."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=handle, args=[connection], daemon=True).start()

        def handle(connection: socket.socket) -> None:
            with connection:
                try:
                    seen.append(connection.recv(1 << 20))
                    answer(connection)
                except OSError:
                    pass  # the client has left, as it should

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1", seen
        server.shutdown(socket.SHUT_RDWR)


def endless(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    while True:
        connection.sendall(b"x" * (1 << 16))


def dripping_body(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def dripping_head(connection: socket.socket) -> None:
    connection.sendall(HEAD)
    while True:
        connection.sendall(b"A: b\r\n")
        time.sleep(0.2)


def compressed(connection: socket.socket) -> None:
    body = gzip.compress(b" " * (1 << 24))
    connection.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def elsewhere(connection: socket.socket) -> None:
    connection.sendall(
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/v1\r\nContent-Length: 0\r\n\r\n"
    )


def impossible(connection: socket.socket) -> None:
    top = [{"token": "M", "logprob": 5000}]
    body = json.dumps({"choices": [{"message": {"content": "M"}, "logprobs": {"content": [{"top_logprobs": top}]}}]})
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body.encode())


def plain(usage: Any) -> Answer:
    def answer(connection: socket.socket) -> None:
        body = json.dumps({"choices": [{"message": {"content": "M"}}], "usage": usage})
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body.encode())

    return answer


HOSTILE: list[tuple[Answer, str]] = [
    (endless, "sends a reply of more than 8 MiB; ask another server"),
    (dripping_body, r"no answer within judge.timeout=0.5 s"),
    (compressed, "sends a compressed reply, which was not asked for"),
    (elsewhere, r"redirects to 'http://127.0.0.1:1/v1', which xlr does not follow"),
    (impossible, "a log-probability is 5000, which is above 0"),
]


@pytest.mark.parametrize(("answer", "message"), HOSTILE, ids=[answer.__name__ for answer, _ in HOSTILE])
def test_a_hostile_endpoint_is_refused_in_time(answer: Answer, message: str, tiny_tree: dict[str, Any]) -> None:
    begun, timeout = time.monotonic(), 0.5 if answer is dripping_body else 10
    with listening(answer) as (url, _), pytest.raises(UserError, match=message) as refused:
        ask(context(tiny_tree, Judge(longer), base_url=url, max_retries=0, timeout=timeout), questions(2))
    assert time.monotonic() - begun < 20
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_a_head_that_never_ends_is_left(tiny_tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_PAUSE", 0.5)
    monkeypatch.setattr(endpoint, "_LAST_ANSWERS_SECONDS", 0.1)
    with (
        listening(dripping_head) as (url, _),
        pytest.raises(UserError, match="a reply does not end, not even long after"),
    ):
        ask(context(tiny_tree, Judge(longer), base_url=url, max_retries=0, timeout=0.5), questions(1))


def test_patience_is_for_each_call() -> None:
    patience, stop = Patience(0.4), threading.Event()
    running = {in_thread(stop.wait): 1, in_thread(lambda: True): 2}
    done = patience.wait(running)
    assert [running[future] for future in done] == [2]
    with pytest.raises(TimeoutError):
        patience.wait({future: number for future, number in running.items() if number == 1})
    stop.set()


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 0}])
def test_a_budget_needs_tokens_to_count(usage: Any, tiny_tree: dict[str, Any]) -> None:
    prices = {"input_price": 1.0, "output_price": 1.0, "budget": 100.0, "preference": "choice"}
    with listening(plain(usage)) as (url, _), pytest.raises(UserError, match=r"so judge\.budget cannot be kept"):
        ask(context(tiny_tree, Judge(longer), base_url=url, **prices), questions(1))
    with listening(plain(usage)) as (url, _):
        assert ask(context(tiny_tree, Judge(longer), base_url=url, preference="choice"), questions(1))[1] == 1


def test_verdicts_belong_to_the_server_that_gave_them(tiny_tree: dict[str, Any]) -> None:
    with serving(Judge(longer)) as first, serving(Judge(longer)) as second:
        assert ask(context(tiny_tree, first), questions(2))[1] == 2
        assert ask(context(tiny_tree, second), questions(2))[1] == 2
        assert ask(context(tiny_tree, first), questions(2))[1] == 0


SECRET = [
    "https://user:hunter2@host/v1",
    "https://hunter2@host/v1",
    "http://:hunter2@host/v1",
    "https://host/v1?key=hunter2",
    "https://host/v1#hunter2",
    "https://user:hunter2@host:99999/v1",
    "ftp://user:hunter2@host",
    "user:hunter2@host/v1",
    "https:user:hunter2@host",
    "hunter2",
    "https://[hunter2",
]


@pytest.mark.parametrize("url", SECRET)
def test_credentials_in_an_address_are_refused_and_never_repeated(
    url: str, tiny_tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"judge\.base_url: (not an address|holds more than an address)") as refused:
        context(tiny_tree, Judge(longer), base_url=url)
    assert "hunter2" not in str(refused.value)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError, match="OPENAI_BASE_URL: ") as refused:
        endpoint.require_usable(configfile.load(Path(tiny_tree["run_dir"]).with_name("plain.yaml")).judge)
    assert "hunter2" not in str(refused.value)


@pytest.fixture(autouse=True)
def plain_config(tiny_tree: dict[str, Any]) -> None:
    path = Path(tiny_tree["run_dir"]).with_name("plain.yaml")
    path.write_text(json.dumps(tiny_tree | {"judge": {"model": "x"}}))


def serve(code: str) -> str:
    return f'{sys.executable} -c "{code}" {{port}}'


def test_a_server_without_keys_is_refused_and_the_real_key_is_not_sent(
    tiny_tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    code = (
        "import sys, time; from tests.judgeserver import Judge, longer, serving; "
        "context = serving(Judge(longer), int(sys.argv[1])); context.__enter__(); time.sleep(60)"
    )
    with pytest.raises(UserError, match=r"takes requests without its key.*\$XLR_JUDGE_KEY"):
        ask(context(tiny_tree, Judge(longer), base_url=None, serve=serve(code)), questions(1))


def test_a_port_that_another_program_took_is_not_asked(
    tiny_tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(plain(None)) as (url, seen):
        monkeypatch.setattr(servedjudge, "free_port", lambda: int(url.split(":")[2].split("/")[0]))
        with pytest.raises(UserError, match=r"judge\.serve: another program holds port"):
            ask(context(tiny_tree, Judge(longer), base_url=None, serve="sleep 60 {port}"), questions(1))
        assert seen == []

"""A hub on loopback: the few endpoints that huggingface_hub asks to download models and datasets."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FIRST, SECOND = "1" * 40, "2" * 40


class HubServer:
    """Serves the folders `{name}` and `datasets/{name}` below a root, each as one commit."""

    def __init__(self, root: Path):
        self.root = root
        self.commit = FIRST
        self.downloaded: list[str] = []
        """Paths of the files that were sent whole, in that order."""
        self.stalled = ""
        """Files with this end of their name are sent only up to their middle."""
        self.stalls = threading.Event()
        self.url = ""

    def environment(self, cache: Path) -> dict[str, str]:
        """The environment of a process that asks this hub."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.respond(with_body=False)

        def do_GET(self) -> None:
            self.respond(with_body=True)

        def respond(self, with_body: bool) -> None:
            path = self.path.partition("?")[0].strip("/")
            if path.startswith("api/"):
                self.send(*self.listed(path.removeprefix("api/").removeprefix("models/")), with_body)
                return
            name, _, rest = path.partition("/resolve/")
            commit, _, file = rest.partition("/")
            whole = hub.root / name / file
            if commit not in ("main", hub.commit) or not whole.is_file():
                self.send(404, b"", with_body)
                return
            self.send(200, whole.read_bytes(), with_body, stalls=bool(hub.stalled) and file.endswith(hub.stalled))
            if with_body:
                hub.downloaded.append(f"{name}/{file}")

        def listed(self, path: str) -> tuple[int, bytes]:
            """The commit of a repository, or its files."""
            asked = "/tree/" if "/tree/" in path else "/revision/"
            name, _, revision = path.partition(asked)
            folder = hub.root / name
            if not folder.is_dir() or revision not in ("main", hub.commit):
                return 404, b"{}"
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            tree = [
                {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": _etag(file)}
                for file in files
            ]
            short = name.removeprefix("datasets/")
            return 200, json.dumps(tree if asked == "/tree/" else {"id": short, "sha": hub.commit}).encode()

        def send(self, status: int, body: bytes, with_body: bool, stalls: bool = False) -> None:
            self.send_response(status)
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if with_body and stalls:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                hub.stalls.set()
                self.rfile.read()  # until the client goes
                raise ConnectionAbortedError
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no news."""


@contextmanager
def serving(root: Path) -> Iterator[HubServer]:
    """A hub whose repositories are the folders below `root`."""
    hub = HubServer(root)
    with _Server(("127.0.0.1", 0), _handler(hub)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()

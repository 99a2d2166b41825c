"""A hub on loopback: the endpoints that huggingface_hub asks to download models and datasets, and to upload models."""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FIRST, SECOND = "1" * 40, "2" * 40
TOKEN, READER = "hf_writer", "hf_reader"
"""Tokens of the user lab: one that may write, and one that may not."""
LARGE = (".safetensors", "tokenizer.json")
"""Ends of names of files that are uploaded apart from the commit."""


class HubServer:
    """Serves the folders `{name}` and `datasets/{name}` below a root: each is the main branch of a repository.

    The folder `{name}@{revision}` is another branch or tag, with `/` as `%2F`. Each has one commit.
    """

    def __init__(self, root: Path):
        self.root = root
        self.commit = FIRST
        """The commit of main branches that were not uploaded."""
        self.commits: dict[str, str] = {}
        """Folder of another branch, or of one that was uploaded -> its commit."""
        self.public: set[str] = set()
        """Repositories that were created public."""
        self.requests: list[str] = []
        """Method and path of each request."""
        self.downloaded: list[str] = []
        """Paths of the files that were sent whole, in that order."""
        self.stalled = ""
        """Files with this end of their name, and uploads with this digest, are transferred only up to their middle."""
        self.stalls = threading.Event()
        self.uploads = root.parent / "uploads"
        """Large files that were received, by their digests."""
        self.received: list[str] = []
        """Digests of the large files that were received whole, in that order."""
        self.url = ""

    def environment(self, cache: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a process that asks this hub."""
        own = {"HF_TOKEN": token} if token else {}
        known = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        return known | {"HF_HUB_DISABLE_XET": "1"} | own

    def commit_of(self, folder: str) -> str:
        """The commit of a branch."""
        return self.commits.get(folder) or (_sha1(folder.encode()) if "@" in folder else self.commit)

    def found(self, name: str, revision: str) -> str | None:
        """The folder of a revision of a repository, from a branch or a commit."""
        if not (self.root / name).is_dir():
            return None
        own = [name, *(str(path.relative_to(self.root)) for path in self.root.glob(f"{name}@*"))]
        named = {**{self.commit_of(folder): folder for folder in own}, "main": name}
        return named.get(revision) or (f"{name}@{revision}" if f"{name}@{revision}" in own else None)


class _RefusedError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, code: str = ""):
        super().__init__(status)
        self.status, self.code = status, code


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(self.get)

        def do_GET(self) -> None:
            self.answer(self.get)

        def do_POST(self) -> None:
            self.answer(self.post)

        def do_PUT(self) -> None:
            self.answer(self.put)

        def answer(self, method: Any) -> None:
            path = self.path.partition("?")[0].strip("/")
            hub.requests.append(f"{self.command} /{path}")
            try:
                method(path)
            except _RefusedError as refused:
                self.send(refused.status, b"{}", code=refused.code)

        # What anybody may read.

        def get(self, path: str) -> None:
            if path == "api/whoami-v2":
                self.require_token()
                self.send_json({"type": "user", "name": "lab", "auth": {}})
            elif path.startswith("api/"):
                self.send_json(self.listed(path.removeprefix("api/").removeprefix("models/")))
            else:
                name, _, rest = path.partition("/resolve/")
                revision, _, file = rest.partition("/")
                folder = self.folder(name, revision)
                whole = hub.root / folder / file
                if not whole.is_file():
                    raise _RefusedError(404, "EntryNotFound")
                stalls = bool(hub.stalled) and file.endswith(hub.stalled)
                self.send(200, whole.read_bytes(), commit=hub.commit_of(folder), stalls=stalls)
                if self.command == "GET":
                    hub.downloaded.append(f"{name}/{file}")

        def listed(self, path: str) -> Any:
            """The commit of a repository, or its files."""
            asked = "/tree/" if "/tree/" in path else "/revision/"
            name, _, rest = path.partition(asked)
            revision, _, inside = rest.partition("/")
            name = self.folder(name, revision or "main")
            folder = hub.root / name
            if inside and not (folder / inside).is_dir():
                raise _RefusedError(404, "EntryNotFound")
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            tree = [
                {
                    "type": "file",
                    "path": str(file.relative_to(folder)),
                    "size": file.stat().st_size,
                    "oid": _sha1(file.read_bytes()),
                }
                for file in files
            ]
            bare = name.partition("@")[0]
            info = {"id": bare.removeprefix("datasets/"), "sha": hub.commit_of(name), "private": bare not in hub.public}
            return tree if asked == "/tree/" else info

        def folder(self, name: str, revision: str) -> str:
            if not (hub.root / name).is_dir():
                raise _RefusedError(404, "RepoNotFound")
            found = hub.found(name, revision)
            if found is None:
                raise _RefusedError(404, "RevisionNotFound")
            return found

        # What needs a token.

        def require_token(self, writes: bool = False) -> None:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if given not in (TOKEN, READER):
                raise _RefusedError(401)
            if writes and given != TOKEN:
                raise _RefusedError(403)

        def post(self, path: str) -> None:
            self.require_token(writes=path != "api/validate-yaml")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = path.removeprefix("api/models/")
            if path == "api/validate-yaml":
                self.send_json({"errors": [], "warnings": []})
            elif path == "api/repos/create":
                self.create(**json.loads(body))
            elif "/branch/" in asked:
                self.branch(*asked.split("/branch/"))
            elif "/preupload/" in asked:
                folder = self.folder(*asked.split("/preupload/"))
                self.send_json({"files": [self.mode(folder, one["path"]) for one in json.loads(body)["files"]]})
            elif path.endswith(".git/info/lfs/objects/batch"):
                self.send_json({"objects": [self.action(one) for one in json.loads(body)["objects"]]})
            else:
                self.make_commit(*asked.split("/commit/"), [json.loads(line) for line in body.splitlines()])

        def create(self, name: str, organization: str, visibility: str, **_: Any) -> None:
            repository = f"{organization}/{name}"
            if organization != "lab":
                raise _RefusedError(403)
            if (hub.root / repository).exists():
                raise _RefusedError(409)
            (hub.root / repository).mkdir(parents=True)
            hub.public |= {repository} if visibility == "public" else set()
            self.send_json({"url": f"{hub.url}/{repository}"})

        def branch(self, name: str, branch: str) -> None:
            if hub.found(name, branch):
                raise _RefusedError(409)
            shutil.copytree(hub.root / name, hub.root / f"{name}@{branch}")
            self.send_json({})

        def mode(self, folder: str, path: str) -> Any:
            """How a file is uploaded, and the digest of the one that is there."""
            large, there = path.endswith(LARGE), hub.root / folder / path
            content = there.read_bytes() if there.is_file() else None
            oid = None if content is None else _sha256(content) if large else _git_blob(content)
            return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

        def action(self, one: dict[str, Any]) -> Any:
            """Where a large file is to be sent; nothing if it is here."""
            known = (hub.uploads / one["oid"]).is_file()
            return one if known else one | {"actions": {"upload": {"href": f"{hub.url}/uploads/{one['oid']}"}}}

        def put(self, path: str) -> None:
            digest, length = path.removeprefix("uploads/"), int(self.headers["Content-Length"])
            if hub.stalled == digest:
                self.rfile.read(length // 2)
                hub.stalls.set()
                self.rfile.read()  # until the client goes
                raise ConnectionAbortedError
            content = self.rfile.read(length)
            if _sha256(content) != digest:
                raise _RefusedError(400)
            hub.uploads.mkdir(exist_ok=True)
            (hub.uploads / digest).write_bytes(content)
            hub.received.append(digest)
            self.send_json({})

        def make_commit(self, name: str, branch: str, operations: list[dict[str, Any]]) -> None:
            folder = self.folder(name, branch)
            new: dict[str, bytes | None] = {}
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "file":
                    new[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    new[value["path"]] = (hub.uploads / value["oid"]).read_bytes()
                elif operation["key"] == "deletedFile":
                    new[value["path"]] = None
            for path, content in new.items():
                if content is None:
                    (hub.root / folder / path).unlink()
                else:
                    (hub.root / folder / path).write_bytes(content)
            hub.commits[folder] = _sha1(json.dumps([hub.commit_of(folder), operations]).encode())
            url = f"{hub.url}/{name}/commit/{hub.commits[folder]}"
            self.send_json({"commitUrl": url, "commitOid": hub.commits[folder]})

        def send_json(self, value: Any) -> None:
            self.send(200, json.dumps(value).encode())

        def send(self, status: int, body: bytes, commit: str = "", code: str = "", stalls: bool = False) -> None:
            self.send_response(status)
            self.send_header("X-Repo-Commit", commit or hub.commit)
            self.send_header("ETag", f'"{_sha1(body)}"')
            self.send_header("Content-Length", str(len(body)))
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command == "HEAD":
                return
            if stalls:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                hub.stalls.set()
                self.rfile.read()  # until the client goes
                raise ConnectionAbortedError
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_blob(content: bytes) -> str:
    return _sha1(b"blob %d\0" % len(content) + content)


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

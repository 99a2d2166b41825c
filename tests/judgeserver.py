"""A fake OpenAI-compatible server on loopback: judges by a rule, and fails as a test asks."""

import json
import math
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# The probability that the second of two answers is better.
Rule = Callable[[str, str], float]

_GRADED = re.compile(r"<answer>\n(.*?)\n</answer>", re.DOTALL)
_ANSWERS = re.compile(r'<answer assistant="(?:m|M)">\n(.*?)\n</answer>', re.DOTALL)
PROMPT_TOKENS = 100


@dataclass
class Judge:
    """How the server behaves. Each request takes the next of `faults`; requests without a fault are judged."""

    rule: Rule
    faults: list[str] = field(default_factory=list)
    logprobs: bool = True
    texts: Sequence[str] = ("m", "M")
    grade: Callable[[str], Mapping[str, float]] = lambda answer: {}
    """Answer -> the probability of each reply to a question that asks for a grade."""
    url: str = ""
    key: str | None = None
    paid: Counter[str] = field(default_factory=Counter)
    requests: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        content = body["messages"][-1]["content"]
        if graded := _GRADED.search(content):
            tokens = dict(self.grade(graded[1]))
            text = max(tokens, key=tokens.__getitem__)
        else:
            second = self.rule(*_ANSWERS.findall(content))
            tokens, text = {"m": 1 - second, "M": second}, self.texts[second > 0.5]
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
        }
        if self.logprobs and body.get("logprobs"):
            top = [{"token": token, "logprob": math.log(p) if p else -9999.0} for token, p in tokens.items()]
            choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": top}]}
        with self.lock:
            self.paid[json.dumps(body, sort_keys=True)] += 1
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 1, "total_tokens": PROMPT_TOKENS + 1}
        return {"id": "x", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        judge: Judge = self.server.judge  # type: ignore[attr-defined]
        if judge.key is not None and self.headers["Authorization"] != f"Bearer {judge.key}":
            self.rfile.read(int(self.headers["Content-Length"]))
            self._send(401, '{"error": {"message": "another key"}}')
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "messages" not in body:
            self._send(400, '{"error": {"message": "no messages"}}')
            return
        with judge.lock:
            judge.requests.append(body)
            fault = judge.faults.pop(0) if judge.faults else None
        match fault:
            case None | "":
                self._send(200, json.dumps(judge.reply(body)))
            case "stall":
                time.sleep(3)
                self.close_connection = True
            case "drop":
                self.connection.close()
                self.close_connection = True
            case "garbage":
                self._send(200, '{"choices": "none"}')
            case "page":
                self._send(200, "<html>It works!</html>", "text/html")
            case "429":
                self._send(429, '{"error": {"message": "slow down"}}', retry_after="0")
            case code:
                self._send(int(code), json.dumps({"error": {"message": f"this is {code}"}}))

    def _send(self, code: int, text: str, kind: str = "application/json", retry_after: str | None = None) -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(judge: Judge, port: int = 0) -> Iterator[Judge]:
    """Run the server while the block runs, by default on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    server.daemon_threads = True
    server.judge = judge  # type: ignore[attr-defined]
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()


def longer(first: str, second: str) -> float:
    """A rule that prefers the longer answer."""
    return 1 / (1 + math.exp((len(first) - len(second)) / 20))


if __name__ == "__main__":
    with serving(Judge(longer, key=os.environ.get("VLLM_API_KEY")), int(sys.argv[1])):
        time.sleep(3600)

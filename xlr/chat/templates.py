"""Probes a chat template, which is foreign code: in a child process with limits, and for what it does to messages.

A template may trim the white space around a message, as many published ones do. It may change nothing else: each
message comes out whole, once, and in its place. It may not loop, take much memory, or write something else each time.
"""

import bisect
import json
import os
import random
import re
import resource
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, TypeAlias

from xlr.errors import UserError
from xlr.records import Message

PROBE = "xlr probe"
"""A short message without white space around it."""

_SECONDS = 10
_MEMORY = 1 << 30  # bytes that the child may map beyond what its parent has mapped
_PROBE_LENGTH = 4000  # characters; templates that cut messages cut at round numbers below
_MOST_TEXT = 100_000  # characters that a template may write for a conversation of two such messages
_SHOWN = 200  # characters of a template's own words in a message
# What messages are made of: several scripts, digits, white space, and text that looks like markup of templates or HTML.
_PIECES = (
    "The quick brown fox ",
    "Größe, façade, naïve. ",
    "Быстрая лиса ",
    "敏捷的狐狸跳过了狗。",
    "สุนัขจิ้งจอก",
    "ثعلب سريع ",
    "तेज़ लोमड़ी ",
    "👩‍🚀🦊",
    " 0123456789 ",
    "{{ 7 * 7 }} {% raw %} {# x #}",
    "<|x|><xlr>&amp;&lt;'\"\\n",
    "\n\n  * two\t\tspaces  ",
)

Render: TypeAlias = Callable[[list[Message], bool], str]
"""Renders messages with a template; the flag asks for the generation prompt at the end."""
_Answer: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Exchange:
    """How a template writes `PROBE` as a prompt, and as an answer to it."""

    prompt: str
    """The prompt with the generation prompt."""
    full: str
    """The prompt and the answer."""
    between: str | None
    """What stands between the generation prompt and the answer; None if the answer does not follow it."""

    @property
    def rest(self) -> str:
        """What stands after the answer."""
        return self.full[self.full.rindex(PROBE) + len(PROBE) :]


def probe(render: Render, name: str) -> Exchange:
    """Render conversations apart from this process and check what came out.

    Args:
        name: the model, for messages.

    Raises:
        UserError: the template fails, takes too long or too much memory, does not write every message as it is, or
            writes something else before each answer.
    """
    user, assistant = _content(1), _content(2)
    asked: list[Message] = [{"role": "user", "content": PROBE}]
    long: list[Message] = [{"role": "user", "content": user}]
    answer: Message = {"role": "assistant", "content": assistant}
    required: list[tuple[list[Message], bool]] = [
        (asked, True),
        ([*asked, {"role": "assistant", "content": PROBE}], False),
        (long, True),
        ([*long, answer], False),
    ]
    # Not every template takes these roles. What it does to their messages is checked where some are rendered.
    others: list[tuple[list[Message], bool]] = [
        ([{"role": "system", "content": _content(3)}, *long], True),
        ([*long, answer, {"role": "user", "content": _content(4)}], True),
    ]
    answers = _answers(render, [*required, *others], name)
    for (messages, _), found in zip(required, answers, strict=False):
        if "error" in found:
            refuse_render(name, messages, found["error"])
        if messages[0]["content"] != PROBE:
            require_whole(messages, found["text"], name)
    if answers[3]["text"].count(user.strip()) + answers[3]["text"].count(assistant.strip()) != 2:
        _refuse(name, "writes a message more than once")
    between = _between(answers[0]["text"], answers[1]["text"], PROBE)
    of_long = _between(answers[2]["text"], answers[3]["text"], assistant)
    if of_long != between:
        _refuse(name, "writes something else before each answer")
    return Exchange(answers[0]["text"], answers[1]["text"], between)


def _between(prompt: str, full: str, answer: str) -> str | None:
    """What stands between a prompt and its answer, which may be stripped of white space; None as in `Exchange`."""
    if not full.startswith(prompt):
        return None
    after = full[len(prompt) :]
    positions = [after.find(text) for text in (answer.rstrip(), answer.strip()) if text in after]
    return after[: min(positions)] if positions else None


def require_whole(messages: Sequence[Message], text: str, name: str) -> None:
    """Check that a rendered conversation contains every message, in order; white space around them may be trimmed.

    Raises:
        UserError: it does not; says what happened to the first such message.
    """
    position = 0
    for message in messages:
        core = message["content"].strip()
        found = text.find(core, position)
        if found < 0:
            _refuse(name, f"{_what_happened(core, text)} (the {message['role']}'s message {core[:40]!r})")
        position = found + len(core)


def refuse_render(name: str, messages: Sequence[Message], why: object) -> NoReturn:
    """Raise the error about a conversation that a template does not render.

    Raises:
        UserError: always.
    """
    roles = ", ".join(message["role"] for message in messages)
    said = " ".join(str(why).split())[:_SHOWN]
    raise UserError(
        f"{name}: the chat template does not accept messages with the roles {roles} ({said}); use a template that "
        "does, or remove such messages"
    )


def _refuse(name: str, what: str) -> NoReturn:
    raise UserError(
        f"{name}: the chat template {what}; use a template that writes every message whole, once and in order (it may "
        "trim white space around them)"
    )


def _content(seed: int) -> str:
    """A long message with white space around it."""
    draw = random.Random(seed)
    text = f"{seed} begins "
    while len(text) < _PROBE_LENGTH:
        text += draw.choice(_PIECES)
    return f" \n{text} ends {seed}\n "


def _what_happened(core: str, text: str) -> str:
    """What a template did to a message that is not in its text, or not where it belongs."""
    if core in text:
        return "writes messages in another order"
    if core.casefold() in text.casefold():
        return "changes upper and lower case"
    if re.sub(r"\s+", "", core) in re.sub(r"\s+", "", text):
        return "changes white space inside a message"
    lengths = range(1, len(core) + 1)
    first = bisect.bisect_left(lengths, True, key=lambda length: core[:length] not in text)
    last = bisect.bisect_left(lengths, True, key=lambda length: core[-length:] not in text)
    if max(first, last) < min(8, len(core)):
        return "drops a message"
    kept, where = (first, "first") if first >= last else (last, "last")
    return f"drops or changes a part of a message: of {len(core):,} characters only the {where} {kept:,} come out"


def _answers(render: Render, conversations: Sequence[tuple[list[Message], bool]], name: str) -> list[_Answer]:
    """Render conversations in a child process: for each one its text or its error.

    Raises:
        UserError: the child needs too long or ends early.
    """
    reader, writer = os.pipe()
    parallelism = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # its default; set, tokenizers does not warn of the fork
    child = _fork()
    if child == 0:
        _render_all(render, conversations, writer)  # never returns
    try:
        if parallelism is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        os.close(writer)
        said = _read(reader)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if said is None:
        _refuse(name, f"takes more than {_SECONDS} s to write a few messages")
    try:
        found: list[_Answer] | _Answer = json.loads(said)
    except ValueError:
        _refuse(name, "takes too much memory or time to write a few messages")
    if isinstance(found, dict):
        _refuse(name, found["refused"])
    return found


def _fork() -> int:
    """A child process.

    Raises:
        UserError: the machine has no room for another process.
    """
    try:
        return os.fork()
    except OSError as error:
        raise UserError(
            f"no process can be started to try a chat template ({error.strerror}); free memory on this machine, or end "
            "processes of yours"
        ) from error


def _read(reader: int) -> bytes | None:
    """What the child writes until it ends; None if that takes too long."""
    until, said = time.monotonic() + _SECONDS, b""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while (left := until - time.monotonic()) > 0:
        if poll.poll(1000 * left):
            more = os.read(reader, 1 << 16)
            if not more:
                return said
            said += more
    return None


def _render_all(render: Render, conversations: Sequence[tuple[list[Message], bool]], writer: int) -> NoReturn:
    """The child: write each text or error to the pipe as JSON, and end without running this process's exit handlers."""
    try:
        _limit()
        try:
            first = [_rendered(render, *conversation) for conversation in conversations]
            _another_day()
            found: list[_Answer] | _Answer = first
            if first != [_rendered(render, *conversation) for conversation in conversations]:
                found = {"refused": "writes something that changes, such as today's date or random text"}
        except MemoryError:
            found = {"refused": "takes too much memory to write a few messages"}
        data = json.dumps(found).encode()
        while data:
            data = data[os.write(writer, data) :]
    finally:
        os._exit(0)


def _rendered(render: Render, messages: list[Message], prompt: bool) -> _Answer:
    try:
        text = render(messages, prompt)
    except MemoryError:
        raise
    except Exception as error:  # a template is foreign code: it can raise anything
        return {"error": f"{type(error).__name__}: {str(error)[:_SHOWN]}"}
    if len(text) > _MOST_TEXT:
        return {"error": f"it writes {len(text):,} characters for them"}
    return {"text": text}


def _another_day() -> None:
    """Change the date that transformers gives to templates in this process."""
    from transformers.utils import chat_template_utils

    vars(chat_template_utils)["datetime"] = SimpleNamespace(now=lambda: datetime(2001, 2, 3, 4, 5, 6))


def _limit() -> None:
    """Limit this process's time, even if its parent is killed, and memory, and silence it."""
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS + 1, _SECONDS + 1))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = mapped + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)

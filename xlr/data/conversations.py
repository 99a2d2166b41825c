"""Conversations in rows: a text, or a list of messages with role and content; and the system message of a run."""

from collections.abc import Sequence
from typing import Any

from xlr.data.fields import is_text, require_no_nul
from xlr.errors import UserError
from xlr.foreign.texts import brief
from xlr.records import Message
from xlr.settings.modelconfig import SystemPrompt

_ROLES = ("system", "user", "assistant")


def with_system(messages: list[Message], system: SystemPrompt, lang: str) -> list[Message]:
    """A conversation after the system message of its language, unless it has one or there is none."""
    text = system.get(lang) if isinstance(system, dict) else system
    if text is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": text}, *messages]


def prompt_messages(value: Any, position: str) -> list[Message]:
    """A conversation that ends with the user's message.

    Raises:
        UserError: it is missing or empty, or the roles of its messages do not alternate.
    """
    messages = read_messages(value, position, "user")
    _require_order(messages, position)
    if messages[-1]["role"] != "user":
        raise UserError(f"{position}: its last message is not the user's; end it with the question to answer")
    return messages


def read_messages(value: Any, position: str, role: str) -> list[Message]:
    """A field as messages; a string is one message of this role.

    Raises:
        UserError: it is neither, or a message has no role or content.
    """
    turns = [{"role": role, "content": value}] if isinstance(value, str) else value
    if not isinstance(turns, list) or not turns:
        raise UserError(
            f"{position}: missing or empty; it must be a string or a list of messages with role and content"
        )
    return [_message(turn, position) for turn in turns]


def _message(turn: Any, position: str) -> Message:
    given = turn if isinstance(turn, dict) else {}
    role, content = str(given.get("role", "")), given.get("content")
    if not is_text(content):
        raise UserError(f"{position}: a message has no content; every message needs a role and a content")
    if role not in _ROLES:
        raise UserError(f"{position}: a message has the role {brief(role)}; it must be one of {', '.join(_ROLES)}")
    return {"role": role, "content": require_no_nul(str(content), position, "a message")}


def _require_order(messages: Sequence[Message], position: str) -> None:
    """Check that at most one system message comes first, and that user and assistant then take turns."""
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    for number, message in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if message["role"] != expected:
            raise UserError(
                f"{position}: a message of the {message['role']} stands where one of the {expected} must be; begin "
                "with one system message or none, then let user and assistant take turns"
            )
    if not turns:
        raise UserError(f"{position}: has only a system message; end it with the question to answer")

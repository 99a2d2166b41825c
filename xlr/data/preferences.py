"""Preference sets: prompts with a chosen and a rejected answer, in English or in several languages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlr.data.fields import identifier, is_text, require_no_nul
from xlr.data.jsonfiles import Row
from xlr.data.preferencerows import PreferenceRows, english_source, preference_sources, source_rows
from xlr.errors import UserError
from xlr.foreign.texts import brief
from xlr.languages import ENGLISH
from xlr.records import Message
from xlr.settings.dataconfig import PreferencesConfig

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt and two answers to it, of which the chosen one is better."""

    id: str
    prompt: list[Message]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class ParallelPreference:
    """A preference of any language, with its prompt in English."""

    own: Preference
    english: list[Message]


def load_parallel_preferences(given: str | PreferencesConfig) -> dict[str, list[ParallelPreference]]:
    """The preferences of each language; see `preference_sources`.

    The English prompt of a row is its field `english`, or the prompt of the row with the same id in English.

    Raises:
        UserError: as `preference_sources` and `load_preferences`, or a prompt's English version is missing.
    """
    sources = preference_sources(given)
    own = {lang: _load(source) for lang, source in sources.items()}
    by_id = {preference.id: preference.prompt for preference, _ in own.get(ENGLISH, [])}
    return {
        lang: [
            ParallelPreference(one, _english(one, lang, english, by_id, sources[lang])) for one, english in own[lang]
        ]
        for lang in sources
    }


def _english(
    one: Preference,
    lang: str,
    given: list[Message] | None,
    by_id: Mapping[str, list[Message]],
    source: Path | PreferenceRows,
) -> list[Message]:
    if lang == ENGLISH:
        return one.prompt
    if given is None and one.id not in by_id:
        raise UserError(
            f"{source}: the preference {one.id!r} has no English prompt, under which cross-lingual rewards are "
            "computed; add a field `english` to the row, or a row of the same id in English"
        )
    return given or by_id[one.id]


def load_preferences(given: str | PreferencesConfig) -> list[Preference]:
    """Read the English preferences of a set with the columns prompt, chosen and rejected, and optionally id.

    Each of the three is a string or a list of messages. Some published sets repeat the prompt in chosen and rejected;
    it must be the same prompt. A row without id gets its index as id.

    Raises:
        UserError: the set cannot be read or has no rows, a field of a row is missing or empty, an id is there twice,
            the roles of messages do not alternate, or chosen and rejected are the same.
    """
    return [preference for preference, _ in _load(english_source(given))]


def _load(source: Path | PreferenceRows) -> list[tuple[Preference, list[Message] | None]]:
    """The preferences of a language, each with the English prompt that its row gives, if it gives one."""
    found: dict[str, tuple[Preference, list[Message] | None]] = {}
    for index, (position, row) in enumerate(source_rows(source)):
        preference = _preference(row, index, position)
        if preference.id in found:
            raise UserError(f"{position}: duplicate id {preference.id!r}; change it, or leave out all ids")
        given = row.get("english")
        found[preference.id] = preference, None if given is None else _prompt(given, f"{position}: english")
    if not found:
        raise UserError(
            f"{source}: contains no preferences; write one object per line, with prompt, chosen and rejected"
        )
    return list(found.values())


def _preference(row: Row, index: int, position: str) -> Preference:
    prompt = _prompt(row.get("prompt"), f"{position}: prompt")
    chosen, rejected = (_answer(row.get(side), prompt, f"{position}: {side}") for side in ("chosen", "rejected"))
    if chosen.strip() == rejected.strip():
        raise UserError(f"{position}: chosen and rejected are the same; correct one of them, or remove the row")
    given = row.get("id")
    return Preference(str(index) if given is None else identifier(given, position, "id"), prompt, chosen, rejected)


def _prompt(value: Any, position: str) -> list[Message]:
    messages = _messages(value, position, "user")
    _require_order(messages, position)
    if messages[-1]["role"] != "user":
        raise UserError(f"{position}: its last message is not the user's; end it with the question to answer")
    return messages


def _answer(value: Any, prompt: Sequence[Message], position: str) -> str:
    """The text of an answer, before which the prompt may be repeated."""
    *before, last = _messages(value, position, "assistant")
    if last["role"] != "assistant":
        raise UserError(f"{position}: its last message is not the assistant's; end it with the answer")
    if before and _stripped(before) != _stripped(prompt):
        raise UserError(f"{position}: its earlier messages are not those of prompt; make them equal, or leave them out")
    return last["content"]


def _stripped(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"].strip()) for message in messages]


def _messages(value: Any, position: str, role: str) -> list[Message]:
    """A field as messages; a string is one message of this role."""
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

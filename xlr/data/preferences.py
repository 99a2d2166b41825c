"""Preference sets: prompts with a chosen and a rejected answer, in English or in several languages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xlr.data.conversations import prompt_messages, read_messages, with_system
from xlr.data.fields import identifier
from xlr.data.jsonfiles import Row
from xlr.data.preferencerows import CATEGORIES, PreferenceRows, english_source, preference_sources, source_rows
from xlr.errors import UserError
from xlr.languages import ENGLISH
from xlr.records import Message
from xlr.settings.dataconfig import PreferencesConfig
from xlr.settings.modelconfig import SystemPrompt


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt and two answers to it, of which the chosen one is better."""

    id: str
    prompt: list[Message]
    chosen: str
    rejected: str
    category: str = ""
    """What kind of prompt it is, if its row says so."""


@dataclass(frozen=True, slots=True)
class ParallelPreference:
    """A preference of any language, with its prompt in English."""

    own: Preference
    english: list[Message]


def load_parallel_preferences(
    given: str | PreferencesConfig, system: SystemPrompt = None
) -> dict[str, list[ParallelPreference]]:
    """The preferences of each language; see `preference_sources`.

    The English prompt of a row is its field `english`, or the prompt of the row with the same id in English.

    Args:
        system: as in `load_preferences`.

    Raises:
        UserError: as `preference_sources` and `load_preferences`, or a prompt's English version is missing.
    """
    sources = preference_sources(given)
    own = {lang: _load(source, lang, system) for lang, source in sources.items()}
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


def load_preferences(given: str | PreferencesConfig, system: SystemPrompt = None) -> list[Preference]:
    """Read the English preferences of a set with the columns prompt, chosen and rejected, and optionally id.

    A row may name its category in `category`, or in `subset` as RewardBench does.

    Each of the three is a string or a list of messages. Some published sets repeat the prompt in chosen and rejected;
    it must be the same prompt. A row without id gets its index as id.

    Args:
        system: the system message of prompts that have none, or that of each language.

    Raises:
        UserError: the set cannot be read or has no rows, a field of a row is missing or empty, an id is there twice,
            the roles of messages do not alternate, or chosen and rejected are the same.
    """
    return [preference for preference, _ in _load(english_source(given), ENGLISH, system)]


def _load(
    source: Path | PreferenceRows, lang: str, system: SystemPrompt
) -> list[tuple[Preference, list[Message] | None]]:
    """The preferences of a language, each with the English prompt that its row gives, if it gives one."""
    found: dict[str, tuple[Preference, list[Message] | None]] = {}
    for index, (position, row) in enumerate(source_rows(source)):
        preference = _preference(row, index, position)
        if preference.id in found:
            raise UserError(f"{position}: duplicate id {preference.id!r}; change it, or leave out all ids")
        given = row.get("english")
        english = None if given is None else prompt_messages(given, f"{position}: english")
        own = replace(preference, prompt=with_system(preference.prompt, system, lang))
        found[preference.id] = own, english and with_system(english, system, ENGLISH)
    if not found:
        raise UserError(
            f"{source}: contains no preferences; write one object per line, with prompt, chosen and rejected"
        )
    return list(found.values())


def _preference(row: Row, index: int, position: str) -> Preference:
    prompt = prompt_messages(row.get("prompt"), f"{position}: prompt")
    chosen, rejected = (_answer(row.get(side), prompt, f"{position}: {side}") for side in ("chosen", "rejected"))
    if chosen.strip() == rejected.strip():
        raise UserError(f"{position}: chosen and rejected are the same; correct one of them, or remove the row")
    given = row.get("id")
    own_id = str(index) if given is None else identifier(given, position, "id")
    named = (row.get(column) for column in CATEGORIES)
    category = next((own.strip() for own in named if isinstance(own, str)), "")
    return Preference(own_id, prompt, chosen, rejected, category)


def _answer(value: Any, prompt: Sequence[Message], position: str) -> str:
    """The text of an answer, before which the prompt may be repeated."""
    *before, last = read_messages(value, position, "assistant")
    if last["role"] != "assistant":
        raise UserError(f"{position}: its last message is not the assistant's; end it with the answer")
    if before and _stripped(before) != _stripped(prompt):
        raise UserError(f"{position}: its earlier messages are not those of prompt; make them equal, or leave them out")
    return last["content"]


def _stripped(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"].strip()) for message in messages]

"""Parallel instructions: the same ids in every language. Reads files of rows, one a language or one for all."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from xlr.data.conversations import prompt_messages, with_system
from xlr.data.datasetrows import require_effect
from xlr.data.fields import identifier, is_text, require_no_nul
from xlr.data.jsonfiles import Row
from xlr.data.promptrows import LANGS, own_rows
from xlr.data.tables import language_source
from xlr.errors import UserError
from xlr.languages import ENGLISH
from xlr.records import Conversation, Prompt, Turn, messages, turns
from xlr.settings.dataconfig import PromptsConfig
from xlr.settings.modelconfig import SystemPrompt

_IDS = ("instruction_id", "id")
_INSTRUCTIONS = ("instruction", "messages")
_INPUT = "input"


@dataclass(frozen=True)
class _Instructions:
    """The instructions of a language."""

    by_id: dict[str, Conversation]
    """In the order of the source."""
    numbered: bool
    """Whether the rows have no ids, so that their numbers are the ids."""


def load_prompts(
    section: PromptsConfig, languages: Iterable[str], system: SystemPrompt = None
) -> dict[str, list[Prompt]]:
    """The instructions of each language, and of English, in which every instruction must exist.

    Args:
        system: the system message of prompts that have none, or that of each language.

    Returns:
        lang -> prompts in the order of the English ids; a language may lack some of them.

    Raises:
        UserError: a source cannot be read or has no split or subset to choose, a row is broken, an id does not exist in
            English, rows without ids are not parallel, or a language has none of the ids that `prompts.limit` or
            `slice` selects.
    """
    require_effect(section)
    wanted = list(dict.fromkeys([ENGLISH, *languages]))
    found = {lang: _read_language(section, lang) for lang in wanted}
    _require_parallel(section, found)
    table = {lang: own.by_id for lang, own in found.items()}
    english = table[ENGLISH]
    order = selected(list(english), section)
    parts = [selected(list(english), section.model_copy(update={"slice": span})) for span in _spans(section)]
    kept: dict[str, list[Prompt]] = {}
    for lang in wanted:
        unknown = next((key for key in table[lang] if key not in english), None)
        if unknown is not None:
            raise UserError(
                f"{section.path}: the id {unknown!r} is in {lang} but not in English; every instruction needs an "
                f"English version: add it to English, or remove it from {lang}"
            )
        kept[lang] = [_prompt(key, lang, table[lang][key], system) for key in order if key in table[lang]]
        lacking = next((part for part in parts if table[lang].keys().isdisjoint(part)), None)
        if lacking is not None:
            chosen = "limit" if section.slice is None else "slice"
            raise UserError(
                f"{section.path}: {lang} has none of the {len(lacking)} English ids that {chosen} selects; choose more "
                f"with {chosen}"
            )
    return kept


def selected(ids: Sequence[str], section: PromptsConfig, language: str = "English") -> list[str]:
    """The ids within limit and slice, or within one of several slices, in their order.

    Args:
        language: whose ids they are, for messages.

    Raises:
        UserError: a slice has no id.
    """
    chosen: set[str] = set()
    for span in _spans(section):
        if not (own := ids[_slice(span)]):
            raise UserError(
                f"{section.path}: has {len(ids)} {language} ids, so that the slice {span} is empty; change it"
            )
        chosen.update(own)
    return [key for key in ids if key in chosen]


def _spans(section: PromptsConfig) -> tuple[str, ...]:
    """The slices of all iterations; the limit as a slice."""
    if isinstance(section.slice, tuple):
        return section.slice
    return (section.slice or f":{section.limit or ''}",)


def _slice(text: str) -> slice:
    return slice(*(int(number) if number else None for number in text.split(":")))


def selection(section: PromptsConfig) -> dict[str, int | str | None]:
    """Limit and slice as an artefact records them: the first prompts as a limit, however they are written."""
    own = _slice(section.slice) if section.slice else slice(section.limit)
    if not own.start:
        return {"prompts.limit": own.stop, "prompts.slice": None}
    return {"prompts.limit": None, "prompts.slice": f"{own.start}:{own.stop or ''}"}


def _prompt(key: str, lang: str, conversation: Conversation, system: SystemPrompt) -> Prompt:
    *history, last = turns(with_system(messages(conversation), system, lang))
    return Prompt(key, lang, last.content, tuple(history))


def _require_parallel(section: PromptsConfig, found: Mapping[str, _Instructions]) -> None:
    """Check that rows without ids belong together by their number.

    Raises:
        UserError: only some languages have ids, or the languages without have different numbers of rows.
    """
    english = found[ENGLISH]
    for lang, own in found.items():
        if own.numbered != english.numbered:
            without, other = (lang, ENGLISH) if own.numbered else (ENGLISH, lang)
            raise UserError(
                f"{section.path}: {without} has no ids, but {other} has; give every row an instruction_id (or id), or "
                "name the column in prompts.columns.id"
            )
        if own.numbered and len(own.by_id) != len(english.by_id):
            raise UserError(
                f"{section.path}: {lang} has {len(own.by_id)} rows and English {len(english.by_id)}. Rows without ids "
                "belong together by their number: make the languages equally long, or give every row an id"
            )


def load_held_out(
    section: PromptsConfig, languages: Iterable[str], system: SystemPrompt = None
) -> dict[str, list[Prompt]]:
    """Like `load_prompts`, but every language must have all ids, so that means over languages are comparable.

    Raises:
        UserError: as `load_prompts`, or a language lacks an id.
    """
    prompts = load_prompts(section, languages, system)
    for lang, own in prompts.items():
        known = {prompt.id for prompt in own}
        lacking = next((prompt.id for prompt in prompts[ENGLISH] if prompt.id not in known), None)
        if lacking is not None:
            file = language_source(section.path, lang)
            where = file if isinstance(file, Path) else f"{section.path} {lang}"
            raise UserError(
                f"{where}: lacks the id {lacking!r}, which {ENGLISH} has; models are evaluated on the same "
                "instructions in every language: add it, or remove it from the other languages"
            )
    return prompts


@dataclass(frozen=True)
class PromptRows:
    """The rows of a language in a source that holds several, which are read only when their digest is needed."""

    section: PromptsConfig
    lang: str

    def digest(self) -> str:
        """SHA-256 of ids and instructions."""
        file = Path(self.section.path)
        return _rows_digest(self.section, self.lang, file.stat().st_mtime_ns if file.is_file() else 0)

    def __str__(self) -> str:
        return f"{self.section.path} {self.lang}"


@cache
def _rows_digest(section: PromptsConfig, lang: str, _modified_ns: int) -> str:
    # An instruction alone as its text, as in older versions, so that runs of these go on.
    rows = {
        key: found[0].content if len(found) == 1 else found
        for key, found in _read_language(section, lang).by_id.items()
    }
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def sources(section: PromptsConfig, languages: Iterable[str]) -> dict[str, Path | PromptRows]:
    """The files of the prompts, or the rows of a source with several languages, as inputs of an artefact."""
    found: dict[str, Path | PromptRows] = {}
    for lang in dict.fromkeys([ENGLISH, *languages]):
        file = language_source(section.path, lang)
        found[f"prompts {lang}"] = file if isinstance(file, Path) else PromptRows(section, lang)
    return found


def _read_language(section: PromptsConfig, lang: str) -> _Instructions:
    found: dict[str, Conversation] = {}
    numbered = False
    for key, position, row in identified(section, lang):
        numbered = numbered or _id_column(section, row) is None
        found[key] = _conversation(row, section.columns.instruction, key, position, lang)
    if not found:
        raise UserError(f"{section.path}: {lang} has no instructions; add some, or remove the language")
    return _Instructions(found, numbered)


def identified(section: PromptsConfig, lang: str) -> Iterator[tuple[str, str, Row]]:
    """The rows of a language, each with its id and its position. Rows without ids have their number as id.

    Raises:
        UserError: a source cannot be read, or a row has no id or one that another row has.
    """
    seen: set[str] = set()
    numbered = False
    for index, (position, row) in enumerate(own_rows(section, lang)):
        name = _id_column(section, row)
        if index == 0:
            numbered = name is None
        if not numbered and (name is None or row.get(name) is None):
            missing = section.columns.id or "instruction_id (or id)"
            raise UserError(f"{position}: the row has no {missing}; every instruction needs one{_there(row)}")
        key = str(index + 1) if numbered or name is None else identifier(row[name], position, name)
        if key in seen:
            raise UserError(f"{position}: duplicate id {key!r}; ids must be unique in a language")
        seen.add(key)
        yield key, position, row


def _id_column(section: PromptsConfig, row: Row) -> str | None:
    return section.columns.id or next((name for name in _IDS if name in row), None)


def _conversation(row: Row, column: str | None, key: str, position: str, lang: str) -> Conversation:
    """The instruction of a row, after its `input` if it has one; or the conversation that the row holds."""
    given = column.replace("{lang}", lang) if column else None
    name = given or next((name for name in _INSTRUCTIONS if name in row), _INSTRUCTIONS[0])
    if name not in row:
        raise UserError(
            f"{position}: the row has no column {name!r}{_there(row)}; name the one with the instruction in "
            "prompts.columns.instruction"
        )
    value, further = row[name], row.get(_INPUT)
    if isinstance(value, list):
        return turns(prompt_messages(value, f"{position}: {name}"))
    if not is_text(value):
        raise UserError(
            f"{position}: the instruction {key!r} is empty: `{name}` must be a text with a visible character, or a "
            "list of messages; fill it in, or remove it from every language"
        )
    text = f"{value}\n\n{further}" if is_text(further) else str(value)
    return (Turn("user", require_no_nul(text, position, name)),)


def unread_columns(section: PromptsConfig, languages: Iterable[str]) -> list[str]:
    """The columns of the first English row that are not read."""
    _, row = next(iter(own_rows(section, ENGLISH)))
    columns = section.columns
    wide = [(columns.instruction or "{lang}").replace("{lang}", lang) for lang in languages]
    read = {columns.id, columns.instruction, columns.lang, _INPUT, *_IDS[:1], *_INSTRUCTIONS, *LANGS, *wide}
    if _IDS[0] not in row:
        read.add(_IDS[1])
    return [name for name in row if name not in read]


def _there(row: Row) -> str:
    names: Sequence[str] = list(row)
    return f" (it has {', '.join(names[:20])})" if names else ""

"""Questions of several turns, such as those of MT-Bench. Each language has its own."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from xlr.data.datasetrows import require_effect
from xlr.data.fields import identifier, is_text, require_no_nul
from xlr.data.jsonfiles import Row
from xlr.data.promptrows import own_rows
from xlr.data.prompts import selected
from xlr.data.tables import language_source
from xlr.errors import UserError
from xlr.settings.dataconfig import TurnsConfig

_IDS = ("question_id", "instruction_id", "id")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The turns of a user."""

    id: str
    lang: str
    category: str
    """Empty if the row has none."""
    turns: tuple[str, ...]
    references: tuple[str, ...]
    """A right answer to each turn; empty texts where none is known."""


def load_dialogues(section: TurnsConfig, lang: str) -> list[Dialogue]:
    """The questions of a language.

    Raises:
        UserError: a source cannot be read, or a row is broken.
    """
    require_effect(section)
    found: dict[str, Dialogue] = {}
    for position, row in own_rows(section, lang):
        name = section.columns.id or next((name for name in _IDS if name in row), _IDS[0])
        if name not in row:
            raise UserError(f"{position}: the row has no {name}; every question needs one that no other has")
        key = identifier(row[name], position, name)
        if key in found:
            raise UserError(f"{position}: duplicate id {key!r}; ids must be unique in a language")
        found[key] = _dialogue(section, key, lang, position, row)
    if not found:
        raise UserError(f"{section.path}: {lang} has no questions; add some, or remove the language")
    return [found[key] for key in selected(list(found), section, lang)]


def _dialogue(section: TurnsConfig, key: str, lang: str, position: str, row: Row) -> Dialogue:
    name, reference = section.columns.instruction or "turns", section.columns.reference or "reference"
    name = name.replace("{lang}", lang)
    turns = row.get(name)
    if not isinstance(turns, list) or not turns or not all(map(is_text, turns)):
        raise UserError(
            f"{position}: {name!r} must be a list of texts, the turns of the user; fix it, or name the column in "
            "evaluate.turns.columns.instruction"
        )
    category = row.get("category")
    return Dialogue(
        key,
        lang,
        category if isinstance(category, str) else "",
        tuple(require_no_nul(turn, position, name) for turn in turns),
        _references(row.get(reference), len(turns), f"{position}: {reference}"),
    )


def _references(given: Any, turns: int, where: str) -> tuple[str, ...]:
    """A reference for each turn, with empty texts for those that have none.

    Raises:
        UserError: they are no list of texts, or more than the turns.
    """
    if given is None:
        given = []
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise UserError(f"{where} must be a list of texts, one for each turn, or be left out")
    if len(given) > turns:
        raise UserError(f"{where} has {len(given)} texts for {turns} turns; remove those without a turn")
    return (*given, *[""] * (turns - len(given)))


@dataclass(frozen=True)
class Dialogues:
    """The questions of a language, as an input of an artefact."""

    section: TurnsConfig
    lang: str

    def digest(self) -> str:
        """SHA-256 of all that is read of them."""
        file = Path(self.section.path)
        return _digest(self.section, self.lang, file.stat().st_mtime_ns if file.is_file() else 0)

    def __str__(self) -> str:
        return f"{self.section.path} {self.lang}"


@cache
def _digest(section: TurnsConfig, lang: str, _modified_ns: int) -> str:
    rows = list(map(asdict, load_dialogues(section, lang)))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def sources(section: TurnsConfig, langs: Sequence[str]) -> dict[str, Path | Dialogues]:
    """The files of the questions, or their rows in a source of several languages, as inputs of an artefact."""
    files = {lang: language_source(section.path, lang) for lang in langs}
    return {
        f"questions {lang}": file if isinstance(file, Path) else Dialogues(section, lang)
        for lang, file in files.items()
    }

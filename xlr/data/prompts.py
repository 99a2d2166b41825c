"""Parallel instructions: the same ids in every language. Reads `{lang}.jsonl`, `{lang}.json` or a `datasets` source."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from xlr.data.fields import identifier, is_text, require_no_nul
from xlr.data.jsonfiles import Row, language_source, read_objects
from xlr.errors import UserError
from xlr.foreign.texts import reason
from xlr.languages import ENGLISH
from xlr.records import Prompt
from xlr.settings.config import PromptsConfig

_EXPECTED = "an object with instruction_id and instruction"


def load_prompts(section: PromptsConfig, languages: Iterable[str]) -> dict[str, list[Prompt]]:
    """The instructions of each language, and of English, in which every instruction must exist.

    Returns:
        lang -> prompts in the order of the English ids; a language may lack some of them.

    Raises:
        UserError: a source cannot be read, a row is broken, an id does not exist in English, or a language has none of
            the ids that `prompts.limit` selects.
    """
    wanted = list(dict.fromkeys([ENGLISH, *languages]))
    table = {lang: _read_language(section.path, lang) for lang in wanted}
    english = table[ENGLISH]
    order = list(english)[: section.limit]
    kept: dict[str, list[Prompt]] = {}
    for lang in wanted:
        unknown = next((key for key in table[lang] if key not in english), None)
        if unknown is not None:
            raise UserError(
                f"{section.path}: the id {unknown!r} is in {lang} but not in English; every instruction needs an "
                f"English version: add it to {ENGLISH}.jsonl, or remove it from {lang}.jsonl"
            )
        kept[lang] = [Prompt(key, lang, table[lang][key]) for key in order if key in table[lang]]
        if not kept[lang]:
            raise UserError(
                f"{section.path}: {lang} has none of the first {len(order)} English ids; raise prompts.limit"
            )
    return kept


def load_held_out(section: PromptsConfig, languages: Iterable[str]) -> dict[str, list[Prompt]]:
    """Like `load_prompts`, but every language must have all ids, so that means over languages are comparable.

    Raises:
        UserError: as `load_prompts`, or a language lacks an id.
    """
    prompts = load_prompts(section, languages)
    for lang, own in prompts.items():
        known = {prompt.id for prompt in own}
        lacking = next((prompt.id for prompt in prompts[ENGLISH] if prompt.id not in known), None)
        if lacking is not None:
            raise UserError(
                f"{language_source(section.path, lang)}: lacks the id {lacking!r}, which {ENGLISH} has; models are "
                "evaluated on the same instructions in every language: add it, or remove it from the other languages"
            )
    return prompts


@dataclass(frozen=True)
class DatasetRows:
    """The rows of a language in a `datasets` source, which are read only when their digest is needed."""

    path: str
    lang: str

    def digest(self) -> str:
        """SHA-256 of ids and instructions."""
        return _rows_digest(self.path, self.lang)

    def __str__(self) -> str:
        return f"{self.path} {self.lang}"


@cache
def _rows_digest(path: str, lang: str) -> str:
    return hashlib.sha256(json.dumps(_read_language(path, lang)).encode()).hexdigest()


def sources(section: PromptsConfig, languages: Iterable[str]) -> dict[str, Path | DatasetRows]:
    """The files of the prompts, or the rows of their `datasets` source, as inputs of an artefact."""
    found: dict[str, Path | DatasetRows] = {}
    for lang in dict.fromkeys([ENGLISH, *languages]):
        file = language_source(section.path, lang)
        found[f"prompts {lang}"] = file if isinstance(file, Path) else DatasetRows(section.path, lang)
    return found


def _read_language(path: str, lang: str) -> dict[str, str]:
    """Instruction by id, in the order of the source."""
    found: dict[str, str] = {}
    for position, row in _rows(path, lang):
        name = "instruction_id" if "instruction_id" in row else "id"
        if row.get(name) is None:
            raise UserError(f"{position}: the row has no instruction_id (or id); every instruction needs one")
        key, instruction = identifier(row[name], position, name), row.get("instruction")
        if not is_text(instruction):
            raise UserError(
                f"{position}: the instruction {key!r} is empty: `instruction` must be a text with a visible character; "
                "fill it in, or remove it from every language"
            )
        if key in found:
            raise UserError(f"{position}: duplicate id {key!r}; ids must be unique in a language")
        found[key] = require_no_nul(str(instruction), position, "instruction")
    if not found:
        raise UserError(f"{path}: {lang} has no instructions; add some, or remove the language")
    return found


def _rows(path: str, lang: str) -> Iterator[tuple[str, Row]]:
    """The rows of a language, each with its position."""
    folder, file = Path(path), language_source(path, lang)
    if isinstance(file, Path):
        return read_objects(file, _EXPECTED)
    if os.path.isdir(folder) and not (folder / "dataset_dict.json").is_file():
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:20]) or "nothing"
        needed = " (English is always required, because responses are scored under it)" if lang == ENGLISH else ""
        raise UserError(f"{folder}: has no {lang}.jsonl or {lang}.json{needed}; it contains {there}")
    return _dataset_rows(path, lang)


def _dataset_rows(path: str, lang: str) -> Iterator[tuple[str, Row]]:
    """The rows of a saved `DatasetDict` (one split a language) or of a hub dataset (one configuration a language)."""
    import datasets

    saved = os.path.isdir(path)
    try:
        rows = datasets.load_from_disk(path)[lang] if saved else datasets.load_dataset(path, lang, split="train")
        for index, row in enumerate(rows):
            yield f"{path} {lang} row {index}", row
    # Of damaged files: TypeError and AttributeError from their JSON, ValueError and OSError from their tables.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        where = "a dataset in this folder" if saved else "no such folder, and a dataset of this name"
        raise UserError(
            f"prompts.path {path}: {where} cannot be read for {lang!r} ({reason(error)}); check the path, or save the "
            f"dataset again with {lang!r} as a split"
        ) from error

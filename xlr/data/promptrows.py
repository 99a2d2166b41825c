"""Where the rows of a language are: in a file of its own, in a table of all languages, or in a dataset."""

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from xlr.data.datasetrows import is_dataset, is_saved, load_hub, load_saved
from xlr.data.jsonfiles import Row
from xlr.data.tables import language_source, read_table
from xlr.errors import UserError
from xlr.foreign.texts import reason
from xlr.languages import ENGLISH
from xlr.settings.dataconfig import PromptsConfig

_EXPECTED = "an object with instruction_id and instruction"
LANGS = ("lang", "language")

Rows = Iterator[tuple[str, Row]]


def own_rows(section: PromptsConfig, lang: str) -> Rows:
    """The rows of a language, each with its position.

    In a table with a column for each language, the instruction is under the key that `prompts.columns.instruction`
    gives, or `instruction`.

    Raises:
        UserError: there is no such source, it cannot be read, or it has no rows of the language.
    """
    path = Path(section.path)
    file = language_source(section.path, lang)
    if isinstance(file, Path):
        return read_table(file, _EXPECTED)
    if path.is_file():
        return _of_language(read_table(path, _EXPECTED), section, lang)
    if os.path.isdir(path) and not is_saved(section.path):
        there = ", ".join(sorted(file.name for file in path.iterdir())[:20]) or "nothing"
        needed = " (English is always required, because responses are scored under it)" if lang == ENGLISH else ""
        raise UserError(
            f"{path}: has no {lang}.jsonl or {lang}.json, .csv, .tsv, .parquet{needed}; it contains {there}"
        )
    if not is_dataset(section.path):
        raise UserError(f"prompts.path {path}: no such file or folder, and no name of a hub dataset (owner/name)")
    return _dataset_rows(section, lang)


def _of_language(rows: Rows, section: PromptsConfig, lang: str) -> Rows:
    """The rows of a language in a table of several.

    Raises:
        UserError: the table tells languages apart by no column.
    """
    columns = section.columns
    first = next(rows, None)
    if first is None:
        return
    names = list(first[1])
    column = columns.lang or next((name for name in LANGS if name in names), None)
    text = (columns.instruction or "{lang}").replace("{lang}", lang)
    wide = column is None and text in names and text != columns.instruction
    if column is None and not wide:
        raise UserError(
            f"{section.path}: has neither a column `lang` nor a column {text!r} with the instructions in {lang}; it "
            f"has {', '.join(names[:20])}: name a column in prompts.columns.lang, or in prompts.columns.instruction"
        )
    for position, row in chain([first], rows):
        if not wide:
            if column not in row:
                raise UserError(f"{position}: the row has no column {column!r} with its language; add it")
            if row[column] == lang:
                yield position, row
        elif row.get(text) not in (None, ""):  # a language may lack an instruction
            yield position, {**row, columns.instruction or "instruction": row[text]}


def _dataset_rows(section: PromptsConfig, lang: str) -> Rows:
    """The rows of a saved or hub dataset: of the language's split or configuration, or of a table of all."""
    path = section.path
    try:
        rows, shared = _dataset(section, lang)
        found = ((f"{path} {lang} row {index}", row) for index, row in enumerate(rows))
        yield from _of_language(found, section, lang) if shared else found
    # Of damaged files: TypeError and AttributeError from their JSON, ValueError and OSError from their tables.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        where = "a dataset in this folder" if os.path.isdir(path) else "the dataset of this name on the hub"
        raise UserError(
            f"prompts.path {path}: {where} cannot be read for {lang!r} ({reason(error)}); check the path, or save the "
            f"dataset again with {lang!r} as a split"
        ) from error


def _dataset(section: PromptsConfig, lang: str) -> tuple[Any, bool]:
    """The rows of a dataset, and whether they are of several languages."""
    path, split, subset = section.path, section.split, section.subset
    if not os.path.isdir(path):
        return load_hub(path, subset or lang, split), subset is not None
    saved = load_saved(path)
    if not isinstance(saved, dict):
        return saved, True
    if split is None and (lang in saved or "train" not in saved):
        return saved[lang], False
    return saved[split or "train"], True

"""Where the preferences of each language are: in files of rows, or in a dataset."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from xlr.data.datasetrows import is_dataset, load_hub, load_saved, require_effect, subsets
from xlr.data.jsonfiles import Row
from xlr.data.tables import SUFFIXES, language_source, read_table
from xlr.errors import UserError
from xlr.foreign.texts import reason
from xlr.languages import ENGLISH, is_language, of_part
from xlr.settings.dataconfig import ParallelPreferencesConfig, PreferencesConfig

_EXPECTED = "an object with prompt, chosen and rejected"
CATEGORIES = ("category", "subset")
"""Columns that may name what kind of prompt a row has; the first that is there counts."""
_COLUMNS = ("id", "prompt", "chosen", "rejected", "english", *CATEGORIES)
# What reading a damaged or another dataset raises.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class PreferenceRows:
    """The preferences of a language in a dataset, which are read only when they or their digest are needed."""

    path: str
    subset: str | None
    split: str | None

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Each row with its position.

        Raises:
            UserError: the dataset cannot be read, or lacks the split or the subset.
        """
        try:
            if os.path.isdir(self.path):
                saved = load_saved(self.path)
                found = saved[self.split or "train"] if isinstance(saved, dict) else saved
            else:
                found = load_hub(self.path, self.subset, self.split)
            known = [name for name in _COLUMNS if name in found.column_names]
            for index, row in enumerate(found.select_columns(known) if known else found):
                yield f"{self} row {index}", row
        except _UNREADABLE as error:
            raise _unreadable(str(self), error) from error

    def digest(self) -> str:
        """SHA-256 of the rows."""
        return _digest(self)

    def __str__(self) -> str:
        return " ".join(part for part in (self.path, self.subset, self.split) if part)


@cache
def _digest(source: PreferenceRows) -> str:
    found = hashlib.sha256()
    for _, row in source.rows():
        for name in CATEGORIES:  # only sort pairs into rows of a table; older run directories do not count them
            row.pop(name, None)
        found.update(json.dumps(row, default=str).encode() + b"\n")
    return found.hexdigest()


def path_of(given: str | PreferencesConfig) -> str:
    """The path or hub name of preferences."""
    return given if isinstance(given, str) else given.path


def preference_sources(given: str | PreferencesConfig) -> dict[str, Path | PreferenceRows]:
    """The preferences of each language.

    Those of a folder are in files `{lang}.jsonl` or alike. Those of a dataset are in the splits (saved) or the subsets
    (hub) that languages name, if one of them is English or the section says where English is. Other files and datasets
    are English.

    Raises:
        UserError: the folder or dataset cannot be read, has no such files, or several of one language.
    """
    path = path_of(given)
    if isinstance(given, PreferencesConfig):
        require_effect(given)
    if is_dataset(path):
        return dict(_of_dataset(PreferencesConfig(path=path) if isinstance(given, str) else given))
    if isinstance(given, ParallelPreferencesConfig):
        for key in (name for name in ("english", "languages") if getattr(given, name) is not None):
            raise UserError(f"{path}: is no dataset, so that {key} has no effect; remove it")
    return dict(_files(path)) if os.path.isdir(path) else {ENGLISH: Path(path)}


def english_source(given: str | PreferencesConfig) -> Path | PreferenceRows:
    """The preferences in English.

    Raises:
        UserError: as `preference_sources`, or there are none.
    """
    found = preference_sources(given)
    if ENGLISH not in found:
        raise UserError(f"{path_of(given)}: has no English preferences; add {ENGLISH}.jsonl")
    return found[ENGLISH]


def source_rows(source: Path | PreferenceRows) -> Iterator[tuple[str, Row]]:
    """The rows of preferences, each with its position.

    Raises:
        UserError: they cannot be read.
    """
    if isinstance(source, PreferenceRows):
        return source.rows()
    if not os.path.lexists(source):
        raise UserError(
            f"{source}: no such file; preferences are a file of rows with prompt, chosen, rejected, or a dataset"
        )
    return read_table(source, _EXPECTED, _COLUMNS)


def _files(path: str) -> Iterator[tuple[str, Path]]:
    folder = Path(path)
    try:
        names = sorted({file.name.split(".")[0] for file in folder.iterdir() if file.name.endswith(SUFFIXES)})
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); make it readable") from error
    for name in names:
        if not is_language(name):
            raise UserError(
                f"{folder / name}.*: {name!r} is no language tag of BCP 47; name files {ENGLISH}.jsonl, ..."
            )
    if not names:
        raise UserError(f"{path}: has no file of preferences such as {ENGLISH}.jsonl; add one for each language")
    for lang in names:
        if isinstance(file := language_source(path, lang), Path):
            yield lang, file


def _of_dataset(section: PreferencesConfig) -> Iterator[tuple[str, Path | PreferenceRows]]:
    path, split, subset = section.path, section.split, section.subset
    saved = os.path.isdir(path)
    try:
        names = _saved_splits(path) if saved else subsets(path)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    parts = {lang: name for name in names if (lang := of_part(name))}
    english, wanted = None, None
    if isinstance(section, ParallelPreferencesConfig):
        english, wanted = section.english, section.languages
    kind, chosen = ("split", split) if saved else ("subset", subset)
    if english is not None:
        if chosen is not None:
            raise UserError(f"{path}: each language is a {kind}, so that {kind}={chosen} has no effect; remove it")
        yield ENGLISH, english_source(english)
        parts.pop(ENGLISH, None)
    elif ENGLISH not in parts or chosen is not None:
        if wanted is not None:
            raise UserError(
                f"{path}: all of it is taken for English, so that languages has no effect; set `english`, or remove it"
            )
        yield ENGLISH, PreferenceRows(path, subset, split)
        return
    if missing := set(wanted or ()) - {ENGLISH, *parts}:
        raise UserError(f"{path}: has no {min(missing)}, only {', '.join(sorted(parts))}; correct `languages`")
    for lang, part in parts.items():
        if wanted is None or lang in (ENGLISH, *wanted):
            yield lang, PreferenceRows(path, subset, part) if saved else PreferenceRows(path, part, split)


def _saved_splits(path: str) -> list[str]:
    saved = load_saved(path)
    return list(saved) if isinstance(saved, dict) else []


def _unreadable(what: str, error: Exception) -> UserError:
    return UserError(
        f"{what}: a dataset of preferences that cannot be read ({reason(error)}); check the path, `split` and `subset`"
    )

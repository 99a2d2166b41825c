"""Parallel instructions: the same ids in every language. Reads `{lang}.jsonl`, `{lang}.json` or a `datasets` source."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from xlr.config import PromptsConfig
from xlr.data.jsonfiles import Row, language_source, read_objects
from xlr.errors import UserError
from xlr.languages import ENGLISH
from xlr.records import Prompt

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


def sources(section: PromptsConfig, languages: Iterable[str]) -> dict[str, str | Path]:
    """The files or `datasets` source of the prompts, as inputs of an artefact."""
    return {f"prompts {lang}": language_source(section.path, lang) for lang in dict.fromkeys([ENGLISH, *languages])}


def _read_language(path: str, lang: str) -> dict[str, str]:
    """Instruction by id, in the order of the source."""
    found: dict[str, str] = {}
    for position, row in _rows(path, lang):
        given = row.get("instruction_id", row.get("id"))
        if given is None:
            raise UserError(f"{position}: the row has no instruction_id (or id); every instruction needs one")
        key, instruction = str(given), row.get("instruction")
        if not isinstance(instruction, str) or not instruction.strip():
            raise UserError(
                f"{position}: the instruction {key!r} is empty; fill it in or remove it from every language"
            )
        if key in found:
            raise UserError(f"{position}: duplicate id {key!r}; ids must be unique in a language")
        found[key] = instruction
    if not found:
        raise UserError(f"{path}: {lang} has no instructions")
    return found


def _rows(path: str, lang: str) -> Iterator[tuple[str, Row]]:
    """The rows of a language, each with its position."""
    folder, file = Path(path), language_source(path, lang)
    if isinstance(file, Path):
        return read_objects(file, _EXPECTED)
    if folder.is_dir() and not (folder / "dataset_dict.json").is_file():
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:20]) or "nothing"
        needed = " (English is always required, because responses are scored under it)" if lang == ENGLISH else ""
        raise UserError(f"{folder}: has no {lang}.jsonl or {lang}.json{needed}; it contains {there}")
    return _dataset_rows(path, lang)


def _dataset_rows(path: str, lang: str) -> Iterator[tuple[str, Row]]:
    """The rows of a saved `DatasetDict` (one split a language) or of a hub dataset (one configuration a language)."""
    import datasets

    try:
        if Path(path).is_dir():
            rows = datasets.load_from_disk(path)[lang]
        else:
            rows = datasets.load_dataset(path, lang, split="train")
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise UserError(
            f"prompts.path {path}: no such folder, and the datasets library finds no {lang!r} there "
            f"({str(error).splitlines()[0]})"
        ) from error
    for index, row in enumerate(rows):
        yield f"{path} {lang} row {index}", row

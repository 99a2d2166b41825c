"""Parallel instructions, aligned to English by id. Reads `{lang}.jsonl`, `{lang}.json` or a `datasets` source."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from xlr.config import PromptsConfig
from xlr.errors import UserError
from xlr.records import Message, Prompt

ENGLISH = "en"


def load_prompts(section: PromptsConfig, languages: Iterable[str]) -> dict[str, list[Prompt]]:
    """The instructions of every language, and English ones as the twins to score under.

    Returns:
        lang -> prompts in the order of the English file; English is always there.

    Raises:
        UserError: naming the file and line of a broken row, or the id that English lacks.
    """
    wanted = list(dict.fromkeys([ENGLISH, *languages]))
    table = {lang: _read_language(section.path, lang) for lang in wanted}
    order = list(table[ENGLISH])[: section.limit]
    kept: dict[str, list[Prompt]] = {}
    for lang in wanted:
        unknown = next((key for key in table[lang] if key not in table[ENGLISH]), None)
        if unknown is not None:
            raise UserError(
                f"{section.path}: {lang} has the id {unknown!r}, which English lacks; every instruction needs its "
                f"English twin: add it to {ENGLISH}.jsonl, or remove it from {lang}.jsonl"
            )
        kept[lang] = [Prompt(key, lang, table[lang][key]) for key in order if key in table[lang]]
        if not kept[lang]:
            raise UserError(
                f"{section.path}: {lang} holds none of the first {len(order)} English ids; raise prompts.limit"
            )
    return kept


def load_held_out(section: PromptsConfig, languages: Iterable[str]) -> dict[str, list[Prompt]]:
    """As `load_prompts`, with the same instructions in every language: means over languages compare like with like.

    Raises:
        UserError: naming the id that a language lacks.
    """
    prompts = load_prompts(section, languages)
    for lang, own in prompts.items():
        there = {prompt.id for prompt in own}
        lacking = next((prompt.id for prompt in prompts[ENGLISH] if prompt.id not in there), None)
        if lacking is not None:
            raise UserError(
                f"{source(section.path, lang)}: lacks the id {lacking!r}, which {ENGLISH} has; models are evaluated on "
                f"the same instructions in every language: add it there, or remove it from all"
            )
    return prompts


def _read_language(path: str, lang: str) -> dict[str, str]:
    """id -> instruction."""
    found: dict[str, str] = {}
    for place, row in _rows(path, lang):
        key = row.get("instruction_id", row.get("id"))
        if key is None:
            raise UserError(f"{place}: the row has no instruction_id (or id); every instruction needs one")
        instruction = row.get("instruction")
        if not isinstance(instruction, str) or not instruction.strip():
            raise UserError(
                f"{place}: the instruction {str(key)!r} is empty; remove it from every language or fill it in"
            )
        if str(key) in found:
            raise UserError(f"{place}: the id {str(key)!r} stands twice; ids are unique in a language")
        found[str(key)] = instruction
    if not found:
        raise UserError(f"{path}: {lang} holds no instructions")
    return found


def sources(section: PromptsConfig, languages: Iterable[str]) -> dict[str, str | Path]:
    """The inputs that an artefact made from these prompts depends on."""
    return {f"prompts {lang}": source(section.path, lang) for lang in dict.fromkeys([ENGLISH, *languages])}


def source(path: str, lang: str) -> Path | str:
    """What a language's instructions are read from: its file, or the `datasets` source as a whole."""
    files = [Path(path) / f"{lang}{suffix}" for suffix in (".jsonl", ".json")]
    return next((file for file in files if file.is_file()), path)


def _rows(path: str, lang: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with the place they stand at."""
    folder, file = Path(path), source(path, lang)
    if isinstance(file, Path):
        yield from read_objects(file)
        return
    if folder.is_dir() and not (folder / "dataset_dict.json").is_file():
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:20]) or "nothing"
        needed = " (English is always needed: responses are scored under it)" if lang == ENGLISH else ""
        raise UserError(f"{folder}: has no {lang}.jsonl or {lang}.json{needed}; it holds {there}")
    import datasets

    try:
        if folder.is_dir():
            rows = datasets.load_from_disk(path)[lang]
        else:
            rows = datasets.load_dataset(path, lang, split="train")
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise UserError(
            f"prompts.path {path}: no such folder, and datasets finds no {lang!r} there ({str(error).splitlines()[0]})"
        ) from error
    for number, row in enumerate(rows):
        yield f"{path} {lang} row {number}", row


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSONL file or of a JSON list, by its name, with their places."""
    return read_jsonl(path) if path.suffix == ".jsonl" else read_json_list(path)


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSONL file with their places; empty lines are passed over.

    Raises:
        UserError: naming the line that is not a JSON object.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", _object(line, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place}: not valid JSON ({error.msg} at column {error.colno}); mend or remove the line"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: a {type(row).__name__}, not an object with instruction_id and instruction")
    return row


def read_json_list(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON list with their places.

    Raises:
        UserError: naming the file, or the element that is not an object.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: holds a {type(rows).__name__}, not a list of objects")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}: element {number} is a {type(row).__name__}, not an object")
        yield f"{path}: element {number}", row


def load_preferences(path: str) -> list[tuple[str, list[Message], str, str]]:
    """A preference set in the prompt/chosen/rejected form: `(id, prompt, chosen, rejected)`.

    Fields are message lists or strings; where chosen and rejected repeat the prompt's turns, as some published
    sets do, the last turn counts.

    Raises:
        UserError: naming the row and the field.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file; preferences are a JSONL or Parquet file with prompt, chosen, rejected")
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
        rows = [(f"{path} row {number}", row) for number, row in enumerate(table.to_pylist())]
    else:
        rows = list(read_jsonl(file))
    preferences = []
    for number, (place, row) in enumerate(rows):
        chosen, rejected = (_last_turn(row.get(side), f"{place}: {side}") for side in ("chosen", "rejected"))
        prompt = _turns(row.get("prompt"), f"{place}: prompt", "user")
        preferences.append((str(row.get("id", number)), prompt, chosen, rejected))
    if not preferences:
        raise UserError(f"{path}: holds no preferences")
    return preferences


def _turns(value: Any, place: str, role: str) -> list[Message]:
    turns = [{"role": role, "content": value}] if isinstance(value, str) else value
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{place}: missing or empty; it is a string or a list of messages with role and content")
    messages: list[Message] = []
    for turn in turns:
        content = turn.get("content") if isinstance(turn, dict) else None
        if not isinstance(content, str) or not content.strip():
            raise UserError(f"{place}: a message without content; every message has a role and a content")
        messages.append({"role": str(turn.get("role", role)), "content": content})
    return messages


def _last_turn(value: Any, place: str) -> str:
    return _turns(value, place, "assistant")[-1]["content"]

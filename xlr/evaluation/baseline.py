"""The answers that a model's answers are compared with, as `judge.baseline` says.

They are the answers of a model of this run, or reference outputs in AlpacaEval's format: a folder of `{lang}.json` or
`{lang}.jsonl` with instruction, output and generator in every row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from xlr.data.jsonfiles import Row
from xlr.data.tables import language_source, read_table
from xlr.errors import UserError
from xlr.records import ModelKey, Prompt, Response
from xlr.run.artifact import Part, Source
from xlr.run.context import Context
from xlr.run.manifests import rows_of

_EXPECTED = "an object with instruction and output"


@dataclass(frozen=True)
class Answers:
    """One answer to each held-out prompt; `generator` is the name of their model in annotations."""

    generator: str
    by_prompt: Mapping[tuple[str, str], str]
    """(lang, prompt id) -> answer."""


class _Output(NamedTuple):
    """A row of reference outputs."""

    prompt_id: str
    text: str
    generator: str


def inputs(context: Context, lang: str | None = None) -> dict[str, Source]:
    """What the baseline's answers are read from, in all languages or in one, as inputs of an artefact."""
    config = context.config
    key, path = config.baseline_model, str(config.judge.baseline)
    if key is not None:
        folder = context.run.iteration(key) / "eval"
        return {"baseline": Part(context.run.path, folder, lang) if lang else folder}
    langs = [lang] if lang else config.evaluated_languages
    return {f"baseline {own}": language_source(path, own) for own in langs}


def load(context: Context) -> Answers:
    """The baseline's answers.

    Raises:
        UserError: the reference outputs cannot be read or lack an instruction.
    """
    key = context.config.baseline_model
    if key is None:
        return reference_outputs(str(context.config.judge.baseline), context.questions)
    return model_answers(context, key)


def model_answers(context: Context, key: ModelKey) -> Answers:
    """The answers of a model whose evaluation is finished, without the blocks in which it thought."""
    folder = context.run.iteration(key)
    rows = rows_of(folder / "eval", Response, "responses/*")
    texts = {(row.lang, row.id): row.response for row in rows}
    if context.config.model.thinking != "skipped":
        encoder = context.encoder_of(key)
        texts = {prompt: text[len(encoder.thought(text)) :] for prompt, text in texts.items()}
    return Answers(folder.name, texts)


def reference_outputs(path: str, prompts: Sequence[Prompt]) -> Answers:
    """Read the reference outputs of prompts from a folder.

    A row belongs to the prompt with its `instruction_id` or `id`, or with the same instruction if it has neither.
    Outputs of other instructions are ignored.

    Raises:
        UserError: a row is broken, or an instruction has no output.
    """
    by_prompt: dict[tuple[str, str], str] = {}
    generators: set[str] = set()
    for lang in dict.fromkeys(prompt.lang for prompt in prompts):
        own = [prompt for prompt in prompts if prompt.lang == lang]
        outputs = list(_read_outputs(path, lang, own))
        by_prompt |= {(lang, output.prompt_id): output.text for output in outputs}
        generators |= {output.generator for output in outputs}
        missing = next((prompt for prompt in own if (lang, prompt.id) not in by_prompt), None)
        if missing is not None:
            raise UserError(
                f"{language_source(path, lang)}: has no output for the instruction {missing.id!r} "
                f"({missing.instruction[:60]!r}); judge.baseline needs an output for every instruction of "
                "evaluate.prompts: add it, or remove the instruction from every language"
            )
    return Answers(generators.pop() if len(generators) == 1 else Path(path).name, by_prompt)


def _read_outputs(path: str, lang: str, prompts: Sequence[Prompt]) -> Iterator[_Output]:
    file = language_source(path, lang)
    if not isinstance(file, Path):
        raise UserError(
            f"judge.baseline {path}: has no {lang}.json with reference outputs; set an iteration, a model of "
            "evaluate.models, or a folder with one file a language"
        )
    by_id = {prompt.id: prompt for prompt in prompts}
    by_instruction = {prompt.instruction: prompt for prompt in prompts}
    for position, row in read_table(file, _EXPECTED):
        key, instruction, text = row.get("instruction_id", row.get("id")), row.get("instruction"), row.get("output")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{position}: the output is empty; fill it in, or remove the row and its instruction")
        prompt = by_instruction.get(str(instruction)) if key is None else by_id.get(str(key))
        if prompt is not None:
            _require_same_instruction(position, row, prompt)
            yield _Output(prompt.id, text, str(row.get("generator", Path(path).name)))


def _require_same_instruction(position: str, row: Row, prompt: Prompt) -> None:
    if row.get("instruction") not in (None, prompt.instruction):
        raise UserError(
            f"{position}: its instruction is not the instruction {prompt.id!r} of evaluate.prompts; use reference "
            "outputs of the same instructions"
        )

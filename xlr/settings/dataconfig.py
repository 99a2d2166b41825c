"""Settings of prompts and preferences: where they are, and how their rows look."""

from typing import Annotated

from pydantic import Field

from xlr.settings.languageconfig import LanguageTag
from xlr.settings.schema import ByIteration, Location, Section


class ColumnsConfig(Section):
    """Names of the columns of prompts. The defaults fit most files."""

    id: str | None = None
    """The id of an instruction, the same in every language. null: instruction_id or id; if there is neither, the
    number of the row."""
    instruction: str | None = None
    """The instruction. `{lang}` in the name stands for the language, where one table has a column for each. null:
    instruction or, in such a table, the code of the language."""
    lang: str | None = None
    """The code of the language, where one table holds the rows of all. null: lang or language, if there is one."""


class PromptsConfig(Section):
    """Parallel instructions: the same ids in every language."""

    path: Annotated[str, Location.DATA]
    """Folder with one file per language, {lang}.jsonl, .json, .csv, .tsv (these also with .gz) or .parquet; or one such
    file for all languages; or a dataset, saved or on the hub."""
    columns: ColumnsConfig = ColumnsConfig()
    split: str | None = None
    """The split of a dataset. null: the split named by the language if there is one, else train."""
    subset: str | None = None
    """The configuration of a hub dataset that holds all languages. null: one configuration per language."""
    limit: int | None = Field(None, ge=1, le=1_000_000_000)
    """Number of instructions per language, counted from the start of the English file. null uses all."""
    slice: ByIteration[Annotated[str, Field(pattern=r"^[0-9]{0,10}:[0-9]{0,10}$")] | None] = None
    """A part of the instructions in the English order, as in Python: "3000:6000" leaves out the first 3,000 and ends
    before the 6,001st. null uses all."""


class CheckedColumnsConfig(ColumnsConfig):
    """Names of the columns of questions with right answers."""

    answer: str | None = None
    """The right answer: a number, a capital letter that names a choice, or a text. null: answer or response."""


class CheckedConfig(PromptsConfig):
    """Questions whose answers can be checked without a judge, parallel in all languages, as prompts are."""

    columns: CheckedColumnsConfig = CheckedColumnsConfig()
    max_new_tokens: int = Field(512, ge=1, le=10_000_000)
    """Maximum length of an answer, in tokens."""


class TurnsColumnsConfig(ColumnsConfig):
    """Names of the columns of questions of several turns."""

    id: str | None = None
    """The id of a question, of its own language. null: question_id, instruction_id or id."""
    instruction: str | None = None
    """The turns of the user: a list of texts. null: turns."""
    reference: str | None = None
    """Right answers to the turns, a list of texts, for questions that have some. null: reference."""


class TurnsConfig(PromptsConfig):
    """Questions of several turns, as in MT-Bench. Languages need not have the same ones."""

    path: Annotated[str, Location.DATA]
    """Folder with one file per language, {lang}.jsonl, .json (these also with .gz) or .parquet; or one such file for
    all languages; or a dataset, saved or on the hub."""
    columns: TurnsColumnsConfig = TurnsColumnsConfig()
    max_new_tokens: int = Field(1024, ge=1, le=10_000_000)
    """Maximum length of an answer, in tokens."""
    limit: int | None = Field(None, ge=1, le=1_000_000_000)
    """Number of questions in each language, counted from the start of its rows. null uses all."""
    slice: ByIteration[Annotated[str, Field(pattern=r"^[0-9]{0,10}:[0-9]{0,10}$")] | None] = None
    """A part of the questions of each language, as in Python: "40:80". null uses all."""
    judge_max_tokens: int = Field(2048, ge=1, le=1_000_000)
    """Maximum length of a rating with its explanation, in tokens, from a judge behind an endpoint. With
    judge.max_tokens null it is omitted from requests."""


class BenchmarksConfig(Section):
    """Benchmarks of multiple choice, run by the package lm-eval: `pip install "xlr[benchmarks]"`."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of tasks or groups of lm-eval, such as xcopa_id or arc_es."""
    include: Annotated[str | None, Location.DATA] = None
    """A folder of own tasks, as lm-eval's YAML files."""
    num_fewshot: int | None = Field(None, ge=0, le=1000)
    """Solved questions before each question. null leaves it to the task."""
    limit: int | None = Field(None, ge=1, le=10_000_000)
    """Questions of each task, from its beginning. null takes all."""
    chat_template: bool = False
    """Whether questions are asked in the chat template."""


class PreferencesConfig(Section):
    """Preferences in a dataset. A path alone needs no section: `preferences: PATH`."""

    path: Annotated[str, Location.DATA]
    """A dataset, saved or on the hub, with the columns prompt, chosen and rejected; or files of rows."""
    split: str | None = None
    """The split of a dataset. null: train, or one split per language in a saved dataset that has the split en."""
    subset: str | None = None
    """The configuration of a hub dataset. null: its default, or one configuration per language if it has one named
    en."""


class ParallelPreferencesConfig(PreferencesConfig):
    """Preferences in a dataset with a part for each language, which may be named as in FLORES: deu_Latn."""

    english: Annotated[str | PreferencesConfig | None, Location.DATA] = None
    """Where the English versions of the rows are, if the dataset has none: preferences with the same ids."""
    languages: Annotated[tuple[LanguageTag, ...], Field(min_length=1)] | None = None
    """The languages of the dataset that are measured, beside English. null: all."""

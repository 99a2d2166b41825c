"""`xlr data`: what xlr reads of the data that a configuration names, before anything is computed."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from xlr import detection
from xlr.data.preferences import Preference, load_parallel_preferences, load_preferences
from xlr.data.prompts import unread_columns
from xlr.foreign.texts import shown
from xlr.languages import ENGLISH
from xlr.records import Prompt, messages
from xlr.run.context import Context
from xlr.settings.config import Config
from xlr.terminal.console import console


@dataclass(frozen=True)
class Found:
    """What a source has in one language."""

    source: str
    """The key of the configuration."""
    language: str
    rows: int
    english: int
    """Number of English rows."""
    mean_tokens: float
    most_tokens: int
    duplicates: int
    """Rows whose text an earlier row has."""
    first: str
    """The first row as the model reads it."""


def check(context: Context) -> Iterator[Found]:
    """The prompts, the held-out prompts and the preferences of a run.

    Raises:
        UserError: a source cannot be read, or a row is broken.
    """
    sections = {"prompts": context.prompts, "evaluate.prompts": context.held_out}
    for name, prompts in sections.items():
        for lang, own in prompts.items():
            yield _found(context, name, lang, own, len(prompts[ENGLISH]))
    config, system = context.config, context.config.model.system_prompt
    if given := context.pinned(config.align.preferences):
        yield _of_preferences(context, "align.preferences", ENGLISH, load_preferences(given, system))
    if given := context.pinned(config.evaluate.preferences):
        for lang, parallel in load_parallel_preferences(given, system).items():
            yield _of_preferences(context, "evaluate.preferences", lang, [one.own for one in parallel])


def _found(context: Context, source: str, lang: str, prompts: Sequence[Prompt], english: int) -> Found:
    ids = [context.encoder.prompt_of(messages(one.conversation)) for one in prompts]
    return _of_tokens(context, source, lang, ids, english)


def _of_preferences(context: Context, source: str, lang: str, preferences: Sequence[Preference]) -> Found:
    ids = [context.encoder.prompt_of(one.prompt) for one in preferences]
    return _of_tokens(context, source, lang, ids, len(ids))


def _of_tokens(context: Context, source: str, lang: str, ids: Sequence[tuple[int, ...]], english: int) -> Found:
    lengths = [len(own) for own in ids]
    return Found(
        source,
        context.config.language_name(lang),
        len(ids),
        english,
        statistics.fmean(lengths),
        max(lengths),
        len(ids) - len(set(ids)),
        context.encoder.tokenizer.decode(ids[0]),
    )


def unread(context: Context) -> Iterator[str]:
    """A sentence on the columns of prompts that xlr does not read."""
    config = context.config
    for key, given in (("prompts", config.prompts), ("evaluate.prompts", config.evaluate.prompts)):
        if given and (names := unread_columns(context.pinned(given), config.all_languages)):
            yield f"{key}: xlr does not read the columns {', '.join(map(shown, names[:20]))}"


def undetected(config: Config) -> Iterator[str]:
    """A sentence on each language of which nothing tells whether a response is in it."""
    for lang in detection.undetected(config.all_languages):
        yield (
            f"{config.language_name(lang)} ({lang}) is not detected: {detection.why_not(lang)}. It has no share of "
            "responses in the right language, and no response is flawed as wrong_language"
        )


def show(found: Sequence[Found], notes: Iterable[str]) -> None:
    """Print a table, notes below it, then the first row of each source and language."""
    table = Table(title="what xlr reads", title_justify="left")
    for name in ("source", "language", "rows", "of the English", "tokens, mean", "most", "duplicates"):
        table.add_column(name, justify="left" if name in ("source", "language") else "right")
    for own in found:
        share = f"{100 * own.rows / own.english:.0f} %"
        cells = (str(own.rows), share, f"{own.mean_tokens:.0f}", str(own.most_tokens), str(own.duplicates))
        table.add_row(own.source, own.language, *cells)
    console.print(table)
    for note in notes:
        console.print(f"{note}.")
    for own in found:
        console.print(f"{own.source}, {own.language}, the first row as the model reads it:")
        console.print(Text(shown(own.first)))

"""Scores of the responses of one iteration in one reward mode, shard by shard."""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from xlr.languages import ENGLISH
from xlr.maths.rewards import FAILED_TRANSLATION
from xlr.records import Conversation, DType, Prompt, Response, RowKey, Score, row_key
from xlr.rewarding.candidates import Candidate, candidate, conversations, limit, rate_shards, score_shards
from xlr.rewarding.grades import WITHOUT_GRADE, grade_shards
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.rows import records
from xlr.sampling import translations
from xlr.sampling.responses import ResponseShard, as_shards
from xlr.sampling.translations import translated_text
from xlr.settings.scoreconfig import IMPLICIT, Reward
from xlr.work.dropped import Dropped
from xlr.work.pieces import Finished


@dataclass(frozen=True)
class InMode:
    """Responses of one iteration with their scores in one reward mode, shard by shard."""

    shards: Sequence[ResponseShard]
    scores: Finished[Score]
    candidates: Callable[[str, Sequence[Response]], list[Candidate]]
    """What of a shard's responses was to be scored."""
    no_text: str
    """Why a response that is not empty gave nothing to score."""
    too_long: str
    """Why what was to be scored has no score."""

    def by_shard(self, dropped: Dropped) -> Iterator[tuple[str, Sequence[RowKey], Any]]:
        """Each shard's name, keys of all responses, and Arrow table of scores, in the same order.

        Args:
            dropped: receives the responses that were not scored.
        """
        for shard in self.shards:
            keys, table = shard.keys(), self.scores.table(shard.name)
            columns = (table[name].to_pylist() for name in ("lang", "id", "sample"))
            scored = {row_key(*key) for key in zip(*columns, strict=True)}
            if not scored.issuperset(keys):
                self._count(shard, scored, dropped)
            yield shard.name, keys, table

    def _count(self, shard: ResponseShard, scored: Container[RowKey], dropped: Dropped) -> None:
        """Count the responses of a shard that were not scored, and why."""
        rows = shard.plan()
        asked = {one.row.key for one in self.candidates(shard.name, rows)}
        for row in rows:
            if row.key not in scored:
                dropped.add(self._why(row, row.key in asked), [row.key])

    def failed_translations(self, name: str) -> int:
        """Number of responses in a shard whose translation failed."""
        texts: list[str] = self.scores.table(name)["scored_text"].to_pylist()
        return texts.count(FAILED_TRANSLATION)

    def _why(self, row: Response, asked: bool) -> str:
        if not row.response.strip():
            return "empty"
        return self.too_long if asked else self.no_text


def score_in_mode(
    context: Context,
    target: Artifact,
    mode: Reward,
    shards: Sequence[ResponseShard],
    iteration: int,
    label: str,
    dtype: DType | None = None,
    pieces: str = "parts",
) -> InMode:
    """Score responses of one iteration in one reward mode.

    Args:
        shards: the responses; none of them English if the mode is translate.
        dtype: the precision; by default the run's own.
        pieces: name of the folder of pieces beside the artefact.
    """
    dtype, thinking = dtype or context.config.scoring_dtype, context.config.model.thinking
    models = (iteration - 1, context.reward_reference(iteration)) if mode in IMPLICIT else ()
    paths = [context.require_model(model) for model in models]
    translations = _translated(context, target, paths[0], shards, iteration) if mode == "translate" else None
    conversation = conversations_of(context, mode)

    def candidates(name: str, rows: Sequence[Response]) -> list[Candidate]:
        found = [candidate(row, conversation(row), context.encoder, thinking) for row in rows if row.response.strip()]
        if translations is not None:
            translated = translations.rows(name)
            texts = (translated_text(context.config, row.response) for row in translated)
            found = [replace(one, text=text) for one, text in zip(found, texts, strict=True)]
        return [one for one in found if (one.text if mode in IMPLICIT else one.answer).strip()]

    asked = [shard.replanned(partial(candidates, shard.name)) for shard in shards]
    if mode == "judge":
        return InMode(shards, grade_shards(context, target, asked, label, dtype, pieces), candidates, *WITHOUT_GRADE)
    if mode == "model":
        scores = rate_shards(context, target, asked, label, dtype, pieces)
    else:
        scores = score_shards(context, target, paths, asked, label, dtype, pieces, context.config.score.terminator)
    no_text = "no answer after thinking" if translations is None else "empty translation"
    return InMode(shards, scores, candidates, no_text, limit(context, rating=mode == "model")[1])


def conversations_of(context: Context, mode: Reward) -> Callable[[Response | Score], Conversation]:
    """Gives the conversation that a row of the run is scored in."""
    prompts = (prompt for own in context.prompts.values() for prompt in own)
    return conversations(prompts, mode, context.config.language_name)


def score_rows(
    context: Context,
    target: Artifact,
    mode: Reward,
    rows: Sequence[Response],
    iteration: int,
    label: str,
    dropped: Dropped,
    dtype: DType | None = None,
) -> list[Score]:
    """Score a few responses of one iteration; see `score_in_mode`.

    Args:
        dropped: receives the rows that cannot be scored.
        dtype: the precision; by default the run's own.

    Returns:
        Scores in the order of `rows`.
    """
    found = score_in_mode(context, target, mode, as_shards(rows), iteration, label, dtype)
    return [score for _, _, table in found.by_shard(dropped) for score in records(table, Score)]


def _translated(
    context: Context, target: Artifact, policy: str, shards: Sequence[ResponseShard], iteration: int
) -> Finished[Response]:
    """English translations of the responses by the policy itself, at temperature 0, without those of empty ones."""

    def wanted(rows: Sequence[Response]) -> list[translations.Wanted]:
        return [
            (Prompt(row.id, row.lang, instruction(row.response, row.lang)), row.sample)
            for row in rows
            if row.response.strip()
        ]

    instruction = partial(translations.instruction, context.config, lang=ENGLISH)
    asked = [shard.replanned(wanted) for shard in shards]
    return translations.translate(context, target, policy, asked, iteration, "translations")

"""Held-out preferences under the reward `translate`: the policy translates the answers, and scores them in English."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from xlr.labelled.asked import Asked
from xlr.languages import ENGLISH
from xlr.records import Prompt, RowKey, row_key
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.sampling import room, translations
from xlr.sampling.samplingplan import Wanted
from xlr.work.shards import by_language

_SIDES = 2  # chosen and rejected, which are numbered as samples are


def check(context: Context, asked: Sequence[Asked]) -> None:
    """Check that the answers and their translations fit the policy's positions.

    Raises:
        UserError: they do not; names the first that does not.
    """
    answers = [(one, side) for one in asked for side in range(_SIDES)]
    requests = room.named(prompt for prompt, _ in _wanted(context, answers))
    positions, longest = room.positions_of_run(context), context.config.generate.max_new_tokens
    room.require_room(context.encoder, requests, positions, longest, "generate.max_new_tokens")


def translated(context: Context, target: Artifact, policy: str, asked: Sequence[Asked], iteration: int) -> list[Asked]:
    """The preferences with the policy's translations of both answers into English, in their order.

    Those of which a translation is empty are left out.

    Args:
        asked: none of them English.
    """
    answers = [(one, side) for one in asked for side in range(_SIDES)]
    shards = [shard.replanned(partial(_wanted, context)) for shard in by_language(answers, _key)]
    pieces = "preferences-translations"
    rows = translations.translate(context, target, policy, shards, iteration, pieces).rows()
    texts = {row.key: translations.translated_text(context.config, row.response) for row in rows}
    found = []
    for one in asked:
        chosen, rejected = (texts[_key((one, side))] for side in range(_SIDES))
        if chosen.strip() and rejected.strip():
            found.append(replace(one, pair=replace(one.pair, chosen=chosen, rejected=rejected)))
    return found


def _key(answer: tuple[Asked, int]) -> RowKey:
    one, side = answer
    return row_key(one.lang, one.pair.id, side)


def _wanted(context: Context, answers: Sequence[tuple[Asked, int]]) -> Wanted:
    """The requests to translate these answers."""
    return [
        (
            Prompt(
                one.pair.id,
                one.lang,
                translations.instruction(context.config, (one.pair.chosen, one.pair.rejected)[side], one.lang, ENGLISH),
            ),
            side,
        )
        for one, side in answers
    ]

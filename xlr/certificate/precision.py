"""What the precision of scoring changes: some responses scored once more, in the other precision."""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from xlr.certificate.diagnosis import plain
from xlr.certificate.facts import Precision
from xlr.languages import ENGLISH
from xlr.records import DType, Prompt, Response, Score
from xlr.rewarding import scores
from xlr.rewarding.pairs import choose
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.dropped import Dropped
from xlr.settings.pairconfig import PairConfig


def rescored(context: Context, target: Artifact, rows: Sequence[Response], iteration: int) -> list[Score]:
    """The scores of responses in the run's reward mode, in the precision that is not the run's own."""
    mode = context.config.score.reward
    of_mode = [row for row in rows if row.lang != ENGLISH or mode != "translate"]
    _, other = _precisions(context)
    pieces = replace(target, folder=target.folder.with_name(f"{target.folder.name}.{other}"))
    label = f"certify iteration {iteration}: {other}"
    return scores.score_rows(context, pieces, mode, of_mode, iteration, label, Dropped(), other)


def compare(
    context: Context, scored: Sequence[Score], again: Sequence[Score], asked: Sequence[Prompt]
) -> dict[str, Precision]:
    """Language -> what the other precision changes.

    Args:
        scored: scores in the run's own precision.
        again: those of some of the same responses in the other one.
    """
    of_key = {row.key: row for row in scored}
    pair = plain(context.config.pair)
    found = {}
    for lang in dict.fromkeys(row.lang for row in again):
        both = [(of_key[row.key], row) for row in again if row.lang == lang and row.key in of_key]
        if len(both) > 1:
            prompts = [prompt for prompt in asked if prompt.lang == lang]
            found[lang] = figures(pair, _precisions(context), both, prompts)
    return found


def figures(
    pair: PairConfig, precisions: tuple[DType, DType], both: Sequence[tuple[Score, Score]], prompts: Sequence[Prompt]
) -> Precision:
    """What the other precision changes for the responses of one language.

    Args:
        both: each response's scores in both precisions; at least two.
    """
    chosen = [
        {prompt.id: (better.response, worse.response) for prompt, better, worse in choose(pair, rows, prompts).pairs}
        for rows in zip(*both, strict=True)
    ]
    common = chosen[0].keys() & chosen[1].keys()
    return {
        "precisions": precisions,
        "responses": len(both),
        "noise": statistics.stdev(own.reward - other.reward for own, other in both),
        "prompts": len(common),
        "changed": sum(chosen[0][key] != chosen[1][key] for key in common),
    }


def _precisions(context: Context) -> tuple[DType, DType]:
    """The run's own precision of scoring, and the other."""
    own = context.pool.precision(context.config.scoring_dtype)
    return ("bfloat16", "float32") if own == "bfloat16" else ("float32", "bfloat16")

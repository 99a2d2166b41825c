"""What the precision of scoring changes: some responses scored once more, in the other precision."""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from xlr.certificate.diagnosis import plain
from xlr.certificate.facts import Precision
from xlr.errors import UserError
from xlr.languages import ENGLISH
from xlr.records import DType, Prompt, Response, Score
from xlr.rewarding.modes import score_rows
from xlr.rewarding.pairs import alpha_unit, choose
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.settings.pairconfig import PairConfig
from xlr.settings.scoreconfig import Reward
from xlr.terminal.console import console
from xlr.work.dropped import Dropped


def rescored(context: Context, target: Artifact, rows: Sequence[Response], iteration: int) -> list[Score]:
    """The scores of responses in the run's reward mode, in the precision that is not the run's own."""
    mode = context.config.score.first
    if mode == "judge":  # it computes in its own precision
        return []
    of_mode = [row for row in rows if row.lang != ENGLISH or mode != "translate"]
    _, other = precisions(context)
    pieces = replace(target, folder=target.folder.with_name(f"{target.folder.name}.{other}"))
    label = f"certify iteration {iteration}: {other}"
    try:
        return score_rows(context, pieces, mode, of_mode, iteration, label, Dropped(), other)
    except UserError as error:  # models that fit in bfloat16 may not fit in float32
        console.print(f"  warning: what {other} would change is not measured: {error}")
        return []


def compare(
    precisions: tuple[str, str],
    pair: PairConfig,
    scored: Sequence[Score],
    again: Sequence[Score],
    asked: Sequence[Prompt],
) -> dict[str, Precision]:
    """Language -> what the other precision changes.

    Args:
        precisions: the run's own and the other.
        scored: scores in the run's own precision.
        again: those of some of the same responses in the other one.
    """
    of_key = {row.key: row for row in scored}
    found = {}
    for lang in dict.fromkeys(row.lang for row in again):
        both = [(of_key[row.key], row) for row in again if row.lang == lang and row.key in of_key]
        if len(both) > 1:
            prompts = [prompt for prompt in asked if prompt.lang == lang]
            found[lang] = figures(plain(pair), precisions, both, prompts)
    return found


def figures(
    pair: PairConfig, precisions: tuple[str, str], both: Sequence[tuple[Score, Score]], prompts: Sequence[Prompt]
) -> Precision:
    """What the other precision changes for the responses of one language.

    Args:
        both: each response's scores in both precisions; at least two.
    """
    kind: Reward = "model" if both[0][0].logp_policy is None else "crosslingual"
    chosen = []
    for rows in zip(*both, strict=True):
        found = choose(pair, rows, prompts, alpha_unit([kind], rows))
        chosen.append({prompt.id: (better.response, worse.response) for prompt, better, worse in found.pairs})
    common = chosen[0].keys() & chosen[1].keys()
    return {
        "precisions": precisions,
        "responses": len(both),
        "noise": statistics.stdev(own.reward - other.reward for own, other in both),
        "prompts": len(common),
        "changed": sum(chosen[0][key] != chosen[1][key] for key in common),
    }


def precisions(context: Context) -> tuple[DType, DType]:
    """The run's own precision of scoring, and the other."""
    own = context.pool.precision(context.config.scoring_dtype)
    return ("bfloat16", "float32") if own == "bfloat16" else ("float32", "bfloat16")

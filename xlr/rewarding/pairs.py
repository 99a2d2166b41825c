"""Stage 3: preference pairs from scores, length-controlled per language.

Reads the scores and the prompts; writes `RUN/iter{t}/pairs/pairs.parquet`. Run alone with
`xlr pair RUN --iteration t`.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xlr.config import Config, Flaw, PairConfig, settings
from xlr.data.prompts import sources
from xlr.data.quality import without
from xlr.errors import UserError
from xlr.records import Pair, Prompt, Score
from xlr.rewarding import scores
from xlr.run.artifact import Artifact
from xlr.run.context import Context, require
from xlr.run.files import atomic_path, write_text
from xlr.run.rows import read_rows, require_each_once, write_rows


def iterations(config: Config) -> list[int]:
    """The iterations in which pairs are made: all but the start."""
    return scores.iterations(config)


def artifact(context: Context, iteration: int) -> Artifact:
    """The pairs of one iteration and what decides them."""
    config = context.config
    return Artifact(
        context.run.iteration(iteration) / "pairs",
        "pair",
        settings(config.pair, "pair") | {"languages": list(config.languages)},
        {"scores": context.run.iteration(iteration) / "scores", **sources(config.prompts, config.languages)},
    )


def check(context: Context) -> None:
    """Nothing: pairs need the prompts alone, which are read before every stage."""


def make(context: Context, iteration: int) -> dict[str, Any]:
    """Choose one pair a prompt where its candidates allow one.

    Raises:
        UserError: no prompt gives a pair.
    """
    require(scores.artifact(context, iteration), f"xlr score {context.run.path} --iteration {iteration}")
    target = artifact(context, iteration)
    rows = read_rows(context.run.iteration(iteration) / "scores", Score)
    pairs: list[Pair] = []
    facts: dict[str, Any] = {}
    for lang in context.config.languages:
        of_lang = [row for row in rows if row.lang == lang]
        if not of_lang:
            continue
        found, facts[lang] = pair_language(context, of_lang, context.prompts[lang])
        pairs += found
    if not pairs:
        raise UserError(
            f"{target.folder}: no prompt gives a pair ({json.dumps(facts)}); sample more responses "
            "(generate.num_samples), raise pair.upper_bound or shorten pair.filters"
        )
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        write_rows(folder / "pairs.parquet", Pair, pairs)
        if context.config.pair.export_jsonl:
            lines = [json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs]
            write_text(folder / "pairs.jsonl", "".join(lines))
        require_each_once(folder, [(pair.lang, pair.id) for pair in pairs], ("lang", "id"))
    target.finish(len(pairs), facts, context.clock)
    return facts


def pair_language(
    context: Context, rows: Sequence[Score], prompts: Sequence[Prompt]
) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs of one language in the order of its prompts, with alpha and what was left out."""
    found = choose(context.config.pair, rows, prompts)
    pairs = [_pair(prompt, chosen, rejected, found.alpha) for prompt, chosen, rejected in found.pairs]
    facts = {
        "pairs": len(pairs),
        "alpha": found.alpha,
        "length_gap": found.length_gap if math.isfinite(found.length_gap) else None,  # JSON has no infinity
        "chosen_chars": _mean([chosen.num_chars for _, chosen, _ in found.pairs]),
        "rejected_chars": _mean([rejected.num_chars for _, _, rejected in found.pairs]),
        "filtered": found.filtered,
        "dropped": {reason: count for reason, count in sorted(found.dropped.items()) if count},
    }
    return pairs, facts


@dataclass(frozen=True)
class Choices:
    """Prompt, chosen and rejected candidate of one language, the length penalty, and what was left out, by reason."""

    pairs: list[tuple[Prompt, Score, Score]]
    alpha: float
    length_gap: float
    filtered: dict[str, int]
    dropped: Counter[str]


def choose(
    section: PairConfig, rows: Sequence[Score], prompts: Sequence[Prompt], alpha: float | None = None
) -> Choices:
    """Choose among one language's candidates.

    Args:
        alpha: the length penalty; by default that which makes chosen and rejected equally long.

    Raises:
        UserError: a reward is not finite.
    """
    from xlr.maths.lengthcontrol import NOTHING, choose_pairs  # imports torch

    candidates, filtered = candidates_by_prompt(rows, section.filters)
    groups = [(prompt, candidates[prompt.id]) for prompt in prompts if prompt.id in candidates]
    rewards = [[row.reward - (alpha or 0.0) * row.num_chars for row in group] for _, group in groups]
    lengths = [[row.num_chars for row in group] for _, group in groups]
    upper_bound = math.inf if section.upper_bound is None else section.upper_bound
    length_control = section.length_control and alpha is None
    try:
        choice = choose_pairs(rewards, lengths, length_control, upper_bound) if groups else NOTHING
    except ValueError as error:
        broken = next(row for row in rows if not abs(row.reward) < float("inf"))
        raise UserError(
            f"iteration's scores: {broken.lang} {broken.id} sample {broken.sample}: the reward is {broken.reward}; "
            "the policy or the reference is damaged"
        ) from error
    pairs: list[tuple[Prompt, Score, Score]] = []
    dropped: Counter[str] = Counter({"no candidate left": len(prompts) - len(groups)})
    indices = zip(choice.chosen_P.tolist(), choice.rejected_P.tolist(), strict=True)
    for (prompt, group), (chosen, rejected) in zip(groups, indices, strict=True):
        reason = _unusable(group, chosen, rejected)
        if reason:
            dropped[reason] += 1
        else:
            pairs.append((prompt, group[chosen], group[rejected]))
    return Choices(pairs, choice.alpha if alpha is None else alpha, choice.length_gap, filtered, dropped)


def candidates_by_prompt(
    rows: Sequence[Score], filters: Collection[Flaw]
) -> tuple[dict[str, list[Score]], dict[str, int]]:
    """A language's responses that the filters leave, by prompt, and how many rows each filter took out."""
    kept, filtered = without(rows, filters)
    candidates: dict[str, list[Score]] = {}
    for row in kept:
        candidates.setdefault(row.id, []).append(row)
    return candidates, filtered


def _unusable(group: Sequence[Score], chosen: int, rejected: int) -> str | None:
    if chosen < 0:
        return "no candidate below pair.upper_bound"
    if len(group) == 1:
        return "one candidate"
    if chosen == rejected:
        return "all candidates equal"
    if group[chosen].response == group[rejected].response:
        return "chosen and rejected are the same text"
    return None


def _pair(prompt: Prompt, chosen: Score, rejected: Score, alpha: float) -> Pair:
    return Pair(
        prompt.id,
        prompt.lang,
        [{"role": "user", "content": prompt.instruction}],
        [{"role": "assistant", "content": chosen.response}],
        [{"role": "assistant", "content": rejected.response}],
        chosen.reward - alpha * chosen.num_chars,
        rejected.reward - alpha * rejected.num_chars,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0

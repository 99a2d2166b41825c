"""Stage 3: preference pairs from scores, with length control in each language, or from translations.

Reads the scores, or the responses and their translations, and the prompts. Writes
`RUN/iter{t}/pairs/pairs.parquet`. Command: `xlr pair RUN --iteration t`.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import compress, count
from typing import TYPE_CHECKING

from xlr import detection
from xlr.chat.format import chat_settings
from xlr.data.prompts import sources
from xlr.data.quality import penalised, without
from xlr.errors import UserError
from xlr.records import Pair, Prompt, Score, messages
from xlr.rewarding import bytranslation, scores
from xlr.rewarding.facts import PairFacts, PairStageFacts
from xlr.run.artifact import Artifact
from xlr.run.context import Context, require
from xlr.run.files import atomic_path
from xlr.run.manifests import rows_of
from xlr.run.rows import require_each_once, write_rows
from xlr.sampling import translations
from xlr.settings.config import Config
from xlr.settings.deciding import deciding
from xlr.settings.pairconfig import Flaw, PairConfig
from xlr.settings.scoreconfig import IMPLICIT, Reward
from xlr.terminal.console import console

if TYPE_CHECKING:
    from xlr.maths.lengthcontrol import Rule


def iterations(config: Config) -> list[int]:
    """The iterations in which pairs are made: all but iteration 0."""
    return config.trained_iterations


def artifact(context: Context, iteration: int) -> Artifact:
    """The pairs of one iteration, with the settings and inputs that decide them."""
    config = context.config.at(iteration)
    return Artifact(
        context.run.path,
        context.run.iteration(iteration) / "pairs",
        "pair",
        deciding(config.pair, "pair")
        | deciding(config.prompts.columns, "prompts.columns")
        | {"languages": list(config.trained_languages), **chat_settings(config.model)}
        | ({"seed": config.seed} if config.pair.by == "translations" else {}),
        {
            **{name: context.run.iteration(iteration) / name for name in _candidates_in(config)},
            **sources(context.pinned(config.prompts), config.trained_languages),
        },
    )


def _candidates_in(config: Config) -> tuple[str, ...]:
    """The artefacts of an iteration that hold the candidates."""
    return ("responses", "translations") if config.pair.by == "translations" else ("scores",)


def check(context: Context) -> None:
    """Check early that filters and penalties can be applied, and warn of languages in which one has no effect.

    Raises:
        UserError: wrong_language would have no effect, unless a package is installed.
    """
    for key in ("filters", "penalties"):
        if "wrong_language" in getattr(context.config.pair, key):
            _check_detection(context, f"pair.{key}")


def _check_detection(context: Context, key: str) -> None:
    """Check that a setting that names wrong_language has an effect; see `check`."""
    for lang in detection.undetected(context.config.trained_languages):
        named = f"{lang} ({context.config.language_name(lang)})"
        if detection.is_in_extra(lang):
            raise UserError(
                f"{key}: wrong_language would have no effect in {named}: {detection.why_not(lang)}; install it, or "
                "remove wrong_language"
            )
        console.print(f"  warning: {key}: wrong_language has no effect in {named}: {detection.why_not(lang)}")


def make(context: Context, iteration: int) -> PairStageFacts:
    """Choose the pairs of every prompt whose candidates allow it.

    Raises:
        UserError: no prompt gives a pair.
    """
    made, command = (scores, "score") if context.config.pair.by == "rewards" else (translations, "translate")
    require(made.artifact(context, iteration), f"xlr {command} {context.run.path} --iteration {iteration}")
    target = artifact(context, iteration)
    section, prompts = context.config.at(iteration).pair.as_candidates, context.prompts_of(iteration)
    rewards = context.config.score.weights
    pairs: list[Pair] = []
    facts: PairStageFacts = {}
    for lang in context.config.trained_languages:
        of_lang = _candidates(context, iteration, lang)  # one language in memory
        if not of_lang:
            continue
        found, facts[lang] = pair_language(section, of_lang, prompts[lang], alpha_unit(rewards, of_lang))
        pairs += found
    if not pairs:
        raise UserError(
            f"{target.folder}: no prompt gives a pair ({json.dumps(facts)}); sample more responses "
            f"(generate.num_samples){', raise pair.upper_bound' * (section.by == 'rewards')} or shorten pair.filters"
        )
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        write_rows(folder / "pairs.parquet", Pair, pairs)
        keys = [(pair.lang, pair.id, str(pair.number)) for pair in pairs]
        require_each_once(folder, keys, ("lang", "id", "number"))
    target.finish(len(pairs), facts, context.clock)
    return facts


def _candidates(context: Context, iteration: int, lang: str) -> list[Score]:
    if context.config.pair.by == "translations":
        return bytranslation.candidates(context, iteration, lang)
    return rows_of(context.run.iteration(iteration) / "scores", Score, part=lang)


def pair_language(
    section: PairConfig, rows: Sequence[Score], prompts: Sequence[Prompt], unit: float = 1.0
) -> tuple[list[Pair], PairFacts]:
    """The pairs of one language in the order of its prompts, and their facts; see `choose`."""
    found = choose(section, rows, prompts, unit)
    numbers: defaultdict[str, count[int]] = defaultdict(count)
    pairs = [
        _pair(*own, found.alpha, next(numbers[own[0].id]), weight)
        for own, weight in zip(found.pairs, found.weights, strict=True)
    ]
    facts: PairFacts = {
        "pairs": len(pairs),
        "prompts": len(numbers),
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
    """The pairs chosen in one language, and what was left out."""

    pairs: list[tuple[Prompt, Score, Score]]
    """Prompt, chosen and rejected candidate. The pairs of a prompt stand together."""
    weights: list[float]
    """How much each pair counts in training."""
    alpha: float
    """Length penalty, in nats a character."""
    length_gap: float
    """|mean length of chosen - mean length of rejected| at alpha, in characters; infinite if no prompt has a pair."""
    filtered: dict[str, int]
    """Flaw -> number of candidates that pair.filters removed for it."""
    dropped: Counter[str]
    """Reason -> number of prompts without a pair, or for pair.keep of pairs that were left out."""


def alpha_unit(rewards: Collection[Reward], rows: Sequence[Score]) -> float:
    """The unit of the length penalty of one language: a nat for one implicit reward, else that of `unit_of`."""
    from xlr.maths.lengthcontrol import unit_of  # imports torch

    implicit = len(rewards) == 1 and IMPLICIT.issuperset(rewards)
    return 1.0 if implicit else unit_of([row.reward for row in rows])


def choose(section: PairConfig, rows: Sequence[Score], prompts: Sequence[Prompt], unit: float = 1.0) -> Choices:
    """Choose the pairs of one language. All rows are of it.

    Args:
        unit: of the length penalty; see `alpha_unit`.

    Raises:
        UserError: a reward is not finite.
    """
    from xlr.maths.lengthcontrol import NOTHING, choose_pairs, kept_by_margin, margin_weights  # imports torch

    candidates, filtered = candidates_by_prompt(rewarded(section, rows), section.filters)
    groups = [(prompt, candidates[prompt.id]) for prompt in prompts if prompt.id in candidates]
    rewards = [[row.reward for row in group] for _, group in groups]
    lengths = [[row.num_chars for row in group] for _, group in groups]
    try:
        choice = choose_pairs(rewards, lengths, section.length_control, rule_of(section), unit) if groups else NOTHING
    except ValueError as error:
        broken = next(row for row in rows if not math.isfinite(row.reward))
        raise UserError(
            f"scores: the reward of {broken.lang} {broken.id} sample {broken.sample} is {broken.reward}; the policy or "
            "the reference model is damaged: replace it and score again"
        ) from error
    pairs: list[tuple[Prompt, Score, Score]] = []
    dropped: Counter[str] = Counter({"no candidate left": len(prompts) - len(groups)})
    indices = zip(choice.chosen_PK.tolist(), choice.rejected_PK.tolist(), strict=True)
    for (prompt, group), (chosen, rejected) in zip(groups, indices, strict=True):
        usable: list[tuple[Prompt, Score, Score]] = []
        reasons: list[str] = []
        for better, worse in zip(chosen, rejected, strict=True):
            if reason := _unusable(group, better, worse):
                reasons.append(reason)
            else:
                usable.append((prompt, group[better], group[worse]))
        pairs += usable
        if not usable:
            dropped[reasons[0]] += 1
    margins = [
        chosen.reward - rejected.reward - choice.alpha * (chosen.num_chars - rejected.num_chars)
        for _, chosen, rejected in pairs
    ]
    lang = rows[0].lang if rows else ""
    kept = kept_by_margin(margins, section.share_kept(lang), section.keep_margins)
    dropped[f"margin not among the {section.keep_margins} that pair.keep keeps"] = kept.count(False)
    own_margins = list(compress(margins, kept))
    weights = margin_weights(own_margins) if section.weight == "margin" else [1.0] * len(own_margins)
    return Choices(list(compress(pairs, kept)), weights, choice.alpha, choice.length_gap, filtered, dropped)


def rewarded(section: PairConfig, rows: Sequence[Score]) -> list[Score]:
    """The rows of one language with the rewards that pairs are chosen by, before length control."""
    return penalised(averaged(rows) if section.per_token else rows, section.penalties)


def averaged(rows: Sequence[Score]) -> list[Score]:
    """The rows of one language with rewards a token, times the mean number of tokens, so that the scale stays.

    Source: the averaged reward among the ablations of arXiv 2503.04647's published code.
    """
    mean = sum(row.num_tokens for row in rows) / max(len(rows), 1)
    return [replace(row, reward=row.reward / row.num_tokens * mean) for row in rows]


def rule_of(section: PairConfig) -> "Rule":
    """How the settings choose pairs, as `choose_pairs` takes it."""
    from xlr.maths.lengthcontrol import NEAREST_MEAN, Rule  # imports torch

    quantiles = {"worst": 0.0, "median": 0.5, "quantile": section.rejected_quantile}
    upper_bound = math.inf if section.upper_bound is None else section.upper_bound
    return Rule(upper_bound, quantiles.get(section.rejected, NEAREST_MEAN), section.per_prompt)


def candidates_by_prompt(
    rows: Sequence[Score], filters: Collection[Flaw]
) -> tuple[dict[str, list[Score]], dict[str, int]]:
    """The responses of one language that pass the filters, by prompt id, and the number that each filter removed."""
    kept, filtered = without(rows, filters)
    candidates: dict[str, list[Score]] = {}
    for row in kept:
        candidates.setdefault(row.id, []).append(row)
    return candidates, filtered


def _unusable(group: Sequence[Score], chosen: int, rejected: int) -> str | None:
    """The reason why a prompt gives no pair, if there is one."""
    if chosen < 0:
        return "no candidate below pair.upper_bound"
    if len(group) == 1:
        return "one candidate"
    if chosen == rejected:
        return "no candidate is worse than the chosen one"
    if group[chosen].response == group[rejected].response:
        return "chosen and rejected are the same text"
    return None


def _pair(prompt: Prompt, chosen: Score, rejected: Score, alpha: float, number: int, weight: float) -> Pair:
    return Pair(
        prompt.id,
        prompt.lang,
        messages(prompt.conversation),
        [{"role": "assistant", "content": chosen.response}],
        [{"role": "assistant", "content": rejected.response}],
        chosen.reward - alpha * chosen.num_chars,
        rejected.reward - alpha * rejected.num_chars,
        number,
        weight,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0

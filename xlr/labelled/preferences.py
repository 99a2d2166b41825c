"""Does the implicit reward of a model agree with held-out preferences, in each language and under each instruction?"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from xlr.data.preferencerows import PreferenceRows, path_of
from xlr.labelled import translated
from xlr.labelled.asked import Asked, asked_of, to_rate
from xlr.labelled.facts import PreferenceFacts
from xlr.languages import ENGLISH
from xlr.maths.rewards import implicit_reward
from xlr.records import INITIAL, Example, ModelKey, PreferenceLogps, RowKey, Scored
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.sampling import room
from xlr.settings.dataconfig import PreferencesConfig
from xlr.settings.scoreconfig import Reward
from xlr.work.logps import Scoring, resumable_logps
from xlr.work.shards import by_language


def inputs(sources: Mapping[str, Path | PreferenceRows], lang: str | None = None) -> dict[str, Path | PreferenceRows]:
    """The preferences of all languages, or those that decide the rewards of one, as inputs of an artefact.

    Args:
        sources: language -> its preferences; see `preference_sources`.
    """
    needed = sources if lang is None else {lang, ENGLISH} if lang in sources else ()
    return {f"preferences {own}": source for own, source in sources.items() if own in needed}


def check(context: Context, given: str | PreferencesConfig) -> None:
    """Check that the preferences can be read and fit the models' positions.

    Raises:
        UserError: one cannot, or does not; names it.
    """
    from xlr.model.checks import positions  # imports torch

    limit = room.positions_of_run(context)
    asked = asked_of(context.config, given)
    pairs = [one.pair for one in asked if one.mode != "translate"]
    room.require_preferences(context.encoder, path_of(given), pairs, limit, "evaluate.preferences")
    translated.check(context, [one for one in asked if one.mode == "translate"])
    if "model" in context.config.score.weights:
        limit, encoder = positions(context.reward_model), context.reward_encoder
        rated = [one.pair for one in to_rate(asked)]
        room.require_preferences(encoder, path_of(given), rated, limit, "evaluate.preferences")


def measure(
    context: Context,
    target: Artifact,
    given: str | PreferencesConfig,
    iteration: int,
    of_start: Sequence[PreferenceLogps] = (),
    without: Collection[str] = (),
    reference: ModelKey = INITIAL,
) -> tuple[list[PreferenceLogps], dict[str, dict[Reward, PreferenceFacts]]]:
    """The implicit rewards log pi^t - log pi_ref of all pairs in every language and mode, and what they amount to.

    With the ratings of the run's reward model, which are the same for every iteration, unless `of_start` is given.
    Under `translate`, pi^t translates the answers.

    Args:
        of_start: the rows of pi^0's evaluation, which hold the log-probabilities under pi_I; empty in that evaluation.
        without: languages that are left out.
        reference: pi_ref, by default pi_I.
    """
    wanted = [one for one in asked_of(context.config, given) if one.lang not in without]
    asked = [one for one in wanted if one.mode != "translate"]
    of_reference = {row.key: (row.chosen_reference, row.rejected_reference) for row in of_start}
    policy = context.model(iteration)
    label, both_models = f"{target.stage} {iteration}: preferences", (policy, context.model(reference))
    models = (policy,) if of_start else both_models
    both = _scored(context, target, models, asked, partial(_plan, context, of_reference), label, "preferences")
    if to_translate := [one for one in wanted if one.mode == "translate"]:
        untranslated = {one.key: one for one in to_translate}
        in_english = translated.translated(context, target, policy, to_translate, iteration)
        plan, pieces = partial(_plan, context, {}), "preferences-translated"
        scored = _scored(context, target, both_models, in_english, plan, f"{label}, translated", pieces)
        # Length control compares the lengths of the answers, not those of their translations.
        both += [(untranslated[row.key], row) for _, row in scored]
    if "model" in context.config.score.weights and not of_start:
        both += _rated(context, target, to_rate(asked), f"{label}, reward model")
    facts: dict[str, dict[Reward, PreferenceFacts]] = {}
    for (lang, mode), own in groupby(both, lambda one: (one[0].lang, one[0].mode)):
        facts.setdefault(lang, {})[mode] = _facts(list(own))
    return [row for _, row in both], facts


def _scored(
    context: Context,
    target: Artifact,
    models: Sequence[str],
    asked: Sequence[Asked],
    plan: Callable[[Sequence[Asked]], Scoring[PreferenceLogps]],
    label: str,
    pieces: str,
    rating: bool = False,
) -> list[tuple[Asked, PreferenceLogps]]:
    """These pairs with their log-probabilities or ratings.

    Args:
        plan: gives the examples of pairs, and the rows that these become.
        pieces: name of the folder of pieces beside the artefact.
        rating: whether the models are reward models.
    """
    shards = [shard.replanned(plan) for shard in by_language(asked, lambda one: one.key)]
    dtype = context.config.scoring_dtype
    rows = resumable_logps(
        context, target, pieces, models, dtype, PreferenceLogps, shards, label, "preferences", rating
    ).rows()
    return list(zip(asked, rows, strict=True))


def _rated(
    context: Context, target: Artifact, asked: Sequence[Asked], label: str
) -> list[tuple[Asked, PreferenceLogps]]:
    """These pairs with the reward model's ratings."""
    encoder = context.reward_encoder

    def plan(some: Sequence[Asked]) -> Scoring[PreferenceLogps]:
        def to_rows(item: int, scored: Scored) -> list[PreferenceLogps]:
            (chosen,), (rejected,) = scored.logps
            return [PreferenceLogps(some[item].lang, some[item].pair.id, some[item].mode, chosen, 0.0, rejected, 0.0)]

        examples = [
            Example(encoder.prompt_of(one.pair.prompt), tuple(encoder.turns([one.pair.chosen, one.pair.rejected])))
            for one in some
        ]
        return Scoring(examples, [[one.key] for one in some], to_rows)

    return _scored(context, target, (context.reward_model,), asked, plan, label, "preferences-rated", rating=True)


def _plan(
    context: Context, reference: Mapping[RowKey, tuple[float, float]], asked: Sequence[Asked]
) -> Scoring[PreferenceLogps]:
    """The examples of preferences. Those under the policy alone become rows with the reference's log-probabilities."""
    encoder = context.encoder

    def to_rows(item: int, scored: Scored) -> list[PreferenceLogps]:
        one = asked[item]
        (chosen, rejected), *of_reference = zip(*scored.logps, strict=True)
        chosen_reference, rejected_reference = of_reference[0] if of_reference else reference[one.key]
        return [
            PreferenceLogps(one.lang, one.pair.id, one.mode, chosen, chosen_reference, rejected, rejected_reference)
        ]

    examples = [
        Example(
            encoder.prompt_of(one.pair.prompt),
            (encoder.response(one.pair.chosen), encoder.response(one.pair.rejected)),
        )
        for one in asked
    ]
    return Scoring(examples, [[one.key] for one in asked], to_rows)


def _facts(scored: Sequence[tuple[Asked, PreferenceLogps]]) -> PreferenceFacts:
    from xlr.maths.accuracy import accuracy, length_penalty, margin_interval  # imports torch
    from xlr.maths.lengthcontrol import unit_of

    chosen = [implicit_reward(row.chosen_policy, row.chosen_reference) for _, row in scored]
    rejected = [implicit_reward(row.rejected_policy, row.rejected_reference) for _, row in scored]
    lengths = [(len(one.pair.chosen), len(one.pair.rejected)) for one, _ in scored]
    unit = unit_of([*chosen, *rejected]) if scored[0][0].mode == "model" else 1.0
    alpha = length_penalty(list(zip(chosen, rejected, strict=True)), lengths, unit)
    facts: PreferenceFacts = {
        "pairs": len(scored),
        "accuracy": accuracy(chosen, rejected),
        "margin": (sum(chosen) - sum(rejected)) / len(scored),
        "margin_interval": margin_interval(chosen, rejected),
        "alpha": alpha,
        "length_controlled_accuracy": accuracy(
            [reward - alpha * length for reward, (length, _) in zip(chosen, lengths, strict=True)],
            [reward - alpha * length for reward, (_, length) in zip(rejected, lengths, strict=True)],
        ),
        "longer_accuracy": accuracy([length for length, _ in lengths], [length for _, length in lengths]),
    }
    of_category: dict[str, list[tuple[float, float]]] = {}
    for (one, _), rewards in zip(scored, zip(chosen, rejected, strict=True), strict=True):
        of_category.setdefault(one.pair.category, []).append(rewards)
    if set(of_category) != {""}:
        facts["categories"] = {
            name or "other": {"pairs": len(own), "accuracy": accuracy(*zip(*own, strict=True))}
            for name, own in sorted(of_category.items())
        }
    return facts

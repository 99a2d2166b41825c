"""Does the implicit reward of a model agree with held-out preferences, in each language and under each instruction?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from xlr import languages
from xlr.data.preferences import ParallelPreference, Preference, load_parallel_preferences, preference_files
from xlr.evaluation.facts import PreferenceFacts
from xlr.languages import ENGLISH
from xlr.maths.accuracy import accuracy, length_penalty
from xlr.maths.rewards import crosslingual_instruction, implicit_reward
from xlr.records import INITIAL, Example, PreferenceReward, Scored
from xlr.rewarding import room
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.settings.config import Reward
from xlr.work.logps import Scoring, resumable_logps
from xlr.work.shards import whole

_MODES: tuple[Reward, ...] = ("crosslingual", "multilingual")


def sources(path: str) -> dict[str, Path]:
    """The files of the preferences, as inputs of an artefact."""
    return {f"preferences {lang}": file for lang, file in preference_files(path).items()}


def check(context: Context, path: str) -> None:
    """Check that the preferences can be read and fit the models' positions.

    Raises:
        UserError: one cannot, or does not; names it.
    """
    limit = room.positions_of_run(context)
    for own in _asked(path).values():
        room.require_preferences(context.encoder, path, own, limit, "evaluate.preferences")


def measure(
    context: Context, target: Artifact, path: str, iteration: int
) -> tuple[list[PreferenceReward], dict[str, dict[Reward, PreferenceFacts]]]:
    """The implicit rewards log pi^t - log pi_I of all pairs in every language and mode, and what they amount to."""
    encoder, of_mode = context.encoder, _asked(path)
    asked = [(lang, mode, one) for (lang, mode), own in of_mode.items() for one in own]
    examples = [
        Example(encoder.prompt_of(one.prompt), (encoder.response(one.chosen), encoder.response(one.rejected)))
        for _, _, one in asked
    ]

    def to_rows(item: int, scored: Scored) -> list[PreferenceReward]:
        lang, mode, one = asked[item]
        chosen, rejected = (implicit_reward(policy, reference) for policy, reference in scored.logps)
        return [PreferenceReward(lang, one.id, mode, chosen, rejected)]

    keys = [[(lang, one.id, mode)] for lang, mode, one in asked]
    rewards = resumable_logps(
        context,
        target,
        "preferences",
        (context.model(iteration), context.model(INITIAL)),
        context.config.scoring_dtype,
        PreferenceReward,
        whole(Scoring(examples, keys, to_rows), keys),
        f"evaluate {iteration}: preferences",
        "preferences",
    ).rows()
    facts: dict[str, dict[Reward, PreferenceFacts]] = {}
    for (lang, mode), own in of_mode.items():
        rows = [row for row in rewards if (row.lang, row.mode) == (lang, mode)]
        facts.setdefault(lang, {})[mode] = _facts(rows, own)
    return rewards, facts


def _facts(rewards: Sequence[PreferenceReward], preferences: Sequence[Preference]) -> PreferenceFacts:
    chosen, rejected = [row.chosen for row in rewards], [row.rejected for row in rewards]
    lengths = [(len(one.chosen), len(one.rejected)) for one in preferences]
    alpha = length_penalty(list(zip(chosen, rejected, strict=True)), lengths)
    return {
        "pairs": len(rewards),
        "accuracy": accuracy(chosen, rejected),
        "margin": (sum(chosen) - sum(rejected)) / len(rewards),
        "alpha": alpha,
        "length_controlled_accuracy": accuracy(
            [reward - alpha * length for reward, (length, _) in zip(chosen, lengths, strict=True)],
            [reward - alpha * length for reward, (_, length) in zip(rejected, lengths, strict=True)],
        ),
        "longer_accuracy": accuracy([length for length, _ in lengths], [length for _, length in lengths]),
    }


def _asked(path: str) -> Mapping[tuple[str, Reward], list[Preference]]:
    """The preferences under the instructions of each language and mode. In English all modes ask the same."""
    return {
        (lang, mode): [_under(mode, lang, one) for one in own]
        for lang, own in load_parallel_preferences(path).items()
        for mode in (("multilingual",) if lang == ENGLISH else _MODES)
    }


def _under(mode: Reward, lang: str, one: ParallelPreference) -> Preference:
    """A preference with the prompt that it is scored under."""
    if mode == "multilingual":
        return one.own
    *before, last = one.english
    instruction = crosslingual_instruction(last["content"], lang, languages.name(lang))
    return replace(one.own, prompt=[*before, {"role": "user", "content": instruction}])

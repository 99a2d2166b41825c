"""How long prompts and responses are, in tokens: prompts counted, responses from what was sampled, or assumed."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from xlr.data.preferences import Preference
from xlr.languages import ENGLISH
from xlr.records import Conversation, Prompt, messages
from xlr.rewarding.candidates import scoring_conversation
from xlr.run.context import Context
from xlr.run.manifests import read_manifest

ASSUMED = 400
"""Tokens of a response in English where nothing is known. Other languages have more, as their prompts have."""
_COUNTED = 100  # prompts or preferences of a language that are tokenised
Row = TypeVar("Row")


@dataclass(frozen=True)
class Lengths:
    """The mean lengths in one language."""

    prompts: int
    """Number of prompts."""
    prompt: float
    """Tokens of a prompt, in its own language."""
    asked: float
    """Tokens of the prompt that its responses are scored under."""
    response: float
    """Tokens of a response."""


def lengths(
    context: Context, iteration: int, assumed: float | None = None, probed: Mapping[str, float] | None = None
) -> tuple[dict[str, Lengths], str]:
    """The lengths in each language of an iteration, and where those of responses come from.

    Args:
        assumed: tokens of a response in English; None takes what the run or a probe has sampled, or `ASSUMED`.
        probed: language -> mean tokens of the responses that a probe sampled.

    Raises:
        UserError: the prompts or the tokenizer cannot be read.
    """
    config = context.config.at(iteration)
    prompts = context.prompts_of(iteration)
    longest = config.generate.max_new_tokens
    own = {lang: _mean(context, [one.conversation for one in _some(prompts[lang])]) for lang in prompts}
    sampled = {} if assumed else _sampled(context)
    known: Mapping[str, float] = {}
    if sampled:
        known, source = sampled[max(sampled)], f"as in iteration {max(sampled)}"
    elif probed and not assumed:
        known, source = probed, "as in the probe"
    else:
        source = f"assumed: {assumed or ASSUMED:g} in English"
    english = {one.id: one for one in prompts[ENGLISH]}
    found: dict[str, Lengths] = {}
    for lang in config.trained_languages:
        name = config.language_name(lang)
        asked = [scoring_conversation(config.score.first, one, english[one.id], name) for one in _some(prompts[lang])]
        response = known.get(lang, min((assumed or ASSUMED) * own[lang] / own[ENGLISH], longest))
        found[lang] = Lengths(len(prompts[lang]), own[lang], _mean(context, asked), response)
    return found, source


def _some(rows: Sequence[Row]) -> Sequence[Row]:
    """At most `_COUNTED` rows, from everywhere among them."""
    return rows[:: max(len(rows) // _COUNTED, 1)][:_COUNTED]


def _mean(context: Context, asked: Sequence[Conversation]) -> float:
    return statistics.fmean(len(context.encoder.prompt_of(messages(one))) for one in asked)


def _sampled(context: Context) -> dict[int, dict[str, float]]:
    """Iteration -> language -> mean tokens of the responses that it sampled."""
    found: dict[int, dict[str, float]] = {}
    for iteration in context.config.trained_iterations:
        manifest = read_manifest(context.run.iteration(iteration) / "responses")
        if manifest is not None:
            facts = manifest["facts"]
            found[iteration] = {lang: own["tokens"] / max(own["rows"], 1) for lang, own in facts.items()}
    return found


def mean_tokens(context: Context, prompts: Sequence[Prompt]) -> float:
    """The mean tokens of prompts, from some of them."""
    return _mean(context, [one.conversation for one in _some(prompts)])


def of_preferences(context: Context, preferences: Sequence[Preference]) -> Lengths:
    """The mean lengths of preferences and their number; a response is the chosen or the rejected one."""
    some = _some(preferences)
    encoder = context.encoder
    prompt = statistics.fmean(len(encoder.prompt_of(one.prompt)) for one in some)
    answers = encoder.responses([text for one in some for text in (one.chosen, one.rejected)])
    return Lengths(len(preferences), prompt, prompt, statistics.fmean(map(len, answers)))

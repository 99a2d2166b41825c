"""A run in a few sentences, for the end of `xlr run` and the first screen of the report."""

from collections.abc import Iterator, Mapping

from xlr.findings import measures
from xlr.findings.conclusion import conclude
from xlr.findings.found import Found, rewards
from xlr.findings.measures import Measure, Share
from xlr.findings.stopping import sentences


def lines(found: Found) -> list[str]:
    """The answer, a sentence for each thing that was measured without a judge, and whether to go on."""
    conclusion = conclude(found)
    answer = [f"{conclusion.caution}."] if conclusion.caution else []
    answer.append(conclusion.sentence)
    accuracy = measures.reward_accuracy(found)
    reward = [reward_sentence(found, accuracy)] if accuracy else []
    changes = [line for one in measures.of_answers(found) for line in _changed(found, one)]
    return [*answer, *reward, *changes, *(sentences(found["advice"]) if found["advice"] else ())]


def reward_sentence(found: Found, accuracy: Mapping[str, Mapping[str, Share]]) -> str:
    """How often the reward of π0 is right in each language, under the instruction that the run scores under."""
    mode, *others = rewards(found)
    # Not every mode is measured in every language, because some ask the same or need a translation.
    own = {lang: by_mode.get(mode, by_mode["multilingual"]) for lang, by_mode in accuracy.items()}
    above = [share for share in own.values() if share.interval[0] > 0.5]
    values = ", ".join(f"{found['names'][lang]} {100 * share.value:.0f} %" for lang, share in own.items())
    reward = f"The {mode} reward" if others else "The reward"
    return (
        f"{reward} prefers the better of two held-out answers in {values} of the pairs; chance is 50 %, and "
        f"{len(above)} of {len(own)} languages are clearly above it."
    )


def _changed(found: Found, measure: Measure) -> Iterator[str]:
    changes = measures.changes(measure)
    if changes:
        named = len(changes) > 1
        values = ", ".join(
            f"{found['names'][one.lang]} " * named + f"{100 * one.before.value:.0f} → {100 * one.after.value:.0f} %"
            for one in changes
        )
        yield f"{measure.title}: {values}; {sum(one.clear for one in changes)} of {len(changes)} changed clearly."

"""Is another iteration worth its cost? What speaks for it and against it, from what was measured so far.

The rule: against it speaks each of these, and one is enough.

- The next gain in win rate, if gains go on shrinking by the same factor, is within the chance of the last one.
- The reward that the next iteration would score with is clearly less often right on held-out preferences than that of
  pi^0.
- The model answers clearly less often in the language that was asked for than pi^0.
- It answers clearly fewer questions with known answers rightly than pi^0.
- The model's reward is clearly less often right on English preferences than that of pi^0, which is forgotten then.

Clearly: all languages and measures are tested together, with Holm's correction.

For it speaks that the expected gain is beyond chance. Without a judge nothing can speak for it.
"""

from collections.abc import Iterator
from typing import Literal

from xlr.evaluation.facts import RateDifferences
from xlr.findings import measures
from xlr.findings.conclusion import SIGNIFICANT, preferred_rate
from xlr.findings.found import AVERAGE, Advice, Found, Sign, by_language, model_key, models, stages
from xlr.maths.shares import holm
from xlr.maths.stopping import expected_gain
from xlr.records import START

_WATCHED = (
    measures.REWARD_ACCURACY,
    measures.RIGHT_LANGUAGE,
    measures.RIGHT_ANSWERS,
    measures.ENGLISH_PREFERENCES,
)


def advise(found: Found) -> Advice | None:
    """What speaks for and against another iteration; None before the first is evaluated."""
    evaluated = [
        key
        for key, model in models(found)
        if isinstance(key, int) and key > START and {"evaluate", "check", "judge"} & model["stages"].keys()
    ]
    if not evaluated:
        return None
    signs = [*_gains(found), *_fallen(found)]
    verdict: Literal["yes", "no", "not clear"] = "not clear"
    if any(sign["against"] for sign in signs):
        verdict = "no"
    elif signs:
        verdict = "yes"
    unit, hours = _cost(found, evaluated[-1])
    return {
        "iteration": evaluated[-1] + 1,
        "verdict": verdict,
        "signs": signs,
        "hours": hours,
        "unit": unit,
    }


def _gains(found: Found) -> Iterator[Sign]:
    """The gains in win rate from iteration to iteration."""
    steps: list[RateDifferences] = [
        dict(by_language(found, change["difference"])).get(AVERAGE) or by_language(found, change["difference"])[0][1]
        for change in found["changes"]
        if int(model_key(change["to"])) == int(model_key(change["from"])) + 1
    ]
    if not steps:
        return
    judged = [(found, own) for _, model in models(found) if (own := model["judgements"])]
    rates = [step[preferred_rate(*judged).value] for step in steps]
    expected, last = expected_gain([rate["value"] for rate in rates]), rates[-1]
    chance = (last["high"] - last["low"]) / 2
    worth = expected > chance
    gains = ", ".join(f"{rate['value']:+.1f}" for rate in rates)
    yield {
        "text": f"The win rate changed by {gains} points from iteration to iteration. If this goes on, the next brings "
        f"{expected:+.1f}, which is {'more' if worth else 'not more'} than the ±{chance:.1f} of chance.",
        "against": not worth,
    }


def _fallen(found: Found) -> Iterator[Sign]:
    """What is clearly lower than for pi^0: the reward's accuracy, and shares of answers."""
    tested = [
        (measure, change)
        for measure in (measures.reward_by_model(found), *measures.of_answers(found))
        if measure.title in _WATCHED
        for change in measures.changes(measure)
    ]
    corrected = holm([change.p for _, change in tested])
    for (measure, change), p in zip(tested, corrected, strict=True):
        if p <= SIGNIFICANT and change.after.value < change.before.value:
            values = f"{100 * change.before.value:.0f} → {100 * change.after.value:.0f} %"
            text = f"{measure.title} fell clearly since π0 in {found['names'][change.lang]}: {values}."
            yield {"text": text, "against": True}


def _cost(found: Found, iteration: int) -> tuple[str, float]:
    """The unit, and what the stages of an iteration took in it."""
    own = stages(found["iterations"][str(iteration)]).values()
    gpus = any(stage["processors"]["gpus"] for stage in own)
    hours = sum(stage["processors"]["gpus" if gpus else "cpus"] * stage["seconds"] / 3600 for stage in own)
    return ("GPU-hours" if gpus else "CPU-hours"), hours


def sentences(advice: Advice) -> list[str]:
    """The advice in words: the answer, then what speaks for it or against it."""
    answers = {
        "yes": "It is likely to be worth it",
        "no": "It is not likely to be worth it",
        "not clear": "Nothing that was measured speaks against it, and nothing shows that it would help",
    }
    cost = f"Iteration {advice['iteration']} would take about {advice['hours']:.3g} {advice['unit']}."
    return [f"{answers[advice['verdict']]}. {cost}", *(sign["text"] for sign in advice["signs"])]

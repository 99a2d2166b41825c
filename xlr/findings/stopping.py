"""Is another iteration worth its cost? What speaks for it and against it, from what was measured so far.

The rule: against it speaks each of these, and one is enough.

- The next gain in win rate, if gains go on shrinking by the same factor, is within the chance of the last one.
- The reward that the next iteration would score with is clearly less often right on held-out preferences than that of
  pi^0, or not clearly better than chance in a language in which that of pi^0 was.
- The model answers clearly less often in the language that was asked for than pi^0.
- It answers clearly fewer questions with known answers rightly than pi^0.
- The model's reward is clearly less often right on English preferences than that of pi^0, which is forgotten then.

For it speaks that the expected gain is beyond chance. Without a judge nothing can speak for it.
"""

from collections.abc import Iterator
from typing import Literal

from xlr.evaluation.facts import RateDifferences
from xlr.findings import measures
from xlr.findings.conclusion import preferred_rate
from xlr.findings.found import AVERAGE, Advice, Found, Sign, by_language, model_key, models, stages
from xlr.findings.measures import Measure
from xlr.maths.stopping import expected_gain
from xlr.records import START


def advise(found: Found) -> Advice | None:
    """What speaks for and against another iteration; None before the first is evaluated."""
    evaluated = [
        key
        for key, model in models(found)
        if isinstance(key, int) and key > START and (model["evaluation"] or model["judgements"])
    ]
    if not evaluated:
        return None
    signs = [*_gains(found), *_reward(found), *_fallen(found)]
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


def _reward(found: Found) -> Iterator[Sign]:
    """The reward that the next iteration would score with, on held-out preferences."""
    for change in measures.changes(measures.reward_by_model(found)):
        name = found["names"][change.lang]
        fell = change.clear and change.after.value < change.before.value
        lost = change.before.interval[0] > 0.5 >= change.after.interval[0]
        if fell or lost:
            how = "clearly less often than that of π0" if fell else "no longer clearly above chance, 50 %"
            yield _against(
                f"The reward of the next iteration is right in {100 * change.after.value:.0f} % of the held-out pairs "
                f"in {name}, {how} ({100 * change.before.value:.0f} %)."
            )


def _fallen(found: Found) -> Iterator[Sign]:
    """Shares of answers and of English preferences that are clearly lower than those of pi^0."""
    for measure in measures.of_answers(found):
        if measure.title in (measures.RIGHT_LANGUAGE, measures.RIGHT_ANSWERS, measures.ENGLISH_PREFERENCES):
            yield from _falls(found, measure)


def _falls(found: Found, measure: Measure) -> Iterator[Sign]:
    for change in measures.changes(measure):
        if change.clear and change.after.value < change.before.value:
            values = f"{100 * change.before.value:.0f} → {100 * change.after.value:.0f} %"
            yield _against(f"{measure.title} fell clearly since π0 in {found['names'][change.lang]}: {values}.")


def _against(text: str) -> Sign:
    return {"text": text, "against": True}


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
        "not clear": "Nothing that was measured speaks against it, and no judge says whether answers get better",
    }
    cost = f"Iteration {advice['iteration']} would take about {advice['hours']:.3g} {advice['unit']}."
    return [f"{answers[advice['verdict']]}. {cost}", *(sign["text"] for sign in advice["signs"])]

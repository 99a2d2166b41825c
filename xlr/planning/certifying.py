"""What `xlr certify` takes, as it is by default, beside the iteration that it decides on."""

from collections.abc import Sequence
from dataclasses import replace

from xlr.certificate.extent import PROMPTS, RESCORED, SAMPLES
from xlr.pipeline import Stage
from xlr.planning.fits import overridden
from xlr.planning.planfile import CertificatePlan, StagePlan
from xlr.planning.planner import Planner
from xlr.planning.setting import Setting
from xlr.planning.work import ESTIMATES
from xlr.records import START

_FIRST = 1  # iteration


def cost(planner: Planner, plans: Sequence[StagePlan]) -> CertificatePlan | None:
    """What a certificate takes; None if there is no reward to certify, or if a judge gives it, which cannot be timed.

    It samples and scores a few responses of each language, some of them in a second precision, and all held-out
    preferences. Answers that can be checked are left out.

    Args:
        plans: of the run's stages. They correct what the certificate's parts take.
    """
    weights = planner.context.config.score.weights
    if planner.context.config.pair.by == "translations" or "judge" in weights:
        return None
    sampled, scored = _few(planner, "generate"), _few(planner, "score")
    rewards = dict.fromkeys(("crosslingual", "multilingual", *weights), 1.0)
    scored = replace(scored, config=overridden(scored.config, {"score.reward": rewards}))
    again = _few(planner, "score", RESCORED)
    again = replace(again, config=overridden(again.config, {"score.reward": "crosslingual"}))
    labelled = replace(scored, iteration=START, held_out=())
    parts = [("generate", sampled), ("score", scored), ("score", again)]
    parts += [("evaluate", labelled)] if labelled.compared else []
    estimates = [(ESTIMATES[name](own), _correction(planner, plans, name)) for name, own in parts]
    work = sum(one.seconds * factor for one, factor in estimates)
    fixed = max(one.fixed * factor for one, factor in estimates)  # the workers start once
    of_iteration = [one for one in plans if one["stage"] in _names(planner)]
    whole = sum(one["seconds"] if one["took"] is None else one["took"] for one in of_iteration)
    return {"seconds": work + fixed, "fixed": fixed, "share": work / max(whole, 1e-9)}


def _names(planner: Planner) -> set[str]:
    """The stages that make the model of the first iteration."""
    return {str(one) for one in planner.stages if one.iteration == _FIRST and not one.kind.any_model}


def _few(planner: Planner, name: str, prompts: int = PROMPTS) -> Setting:
    """A stage of the first iteration, with so many prompts of each language and the responses of a certificate."""
    own = planner.setting(Stage(name, _FIRST))
    lengths = {lang: replace(one, prompts=min(one.prompts, prompts)) for lang, one in own.lengths.items()}
    return replace(own, lengths=lengths, config=overridden(own.config, {"generate.num_samples": SAMPLES}))


def _correction(planner: Planner, plans: Sequence[StagePlan], name: str) -> float:
    """What the times of a kind of stage are multiplied by, because of a probe or of an earlier iteration."""
    stage = next((one for one in planner.stages if one.name == name), None)
    if stage is None:
        return 1.0
    planned = next(one["seconds"] for one in plans if one["stage"] == str(stage))
    return planned / max(ESTIMATES[name](planner.setting(stage)).duration, 1e-9)

"""The plan of a run: what each stage takes, in total, and what does not fit."""

from collections.abc import Callable, Sequence

from xlr.pipeline import Stage
from xlr.planning import certifying, fits, probe
from xlr.planning.planfile import Plan, StagePlan, Totals
from xlr.planning.planner import Planner
from xlr.planning.setting import Estimate, Setting
from xlr.planning.work import ESTIMATES
from xlr.run.context import Context
from xlr.run.manifests import read_manifest

_UNMEASURED, _MEASURED = 0.35, 0.15
"""How far the time of a stage may lie from its estimate: by rates of data sheets, and by an iteration or a probe."""


def make(planner: Planner, limit_of: Callable[[Stage], int | None], ran_there: bool = True) -> Plan:
    """Plan all stages of a run.

    Args:
        limit_of: the time limit of the job that a stage runs in, in seconds; None if it has none.
        ran_there: whether finished stages ran on the planned machines, so that their times correct those that follow.
            A probe of these machines corrects the others.
    """
    plans: list[StagePlan] = []
    problems: list[str] = []
    corrections: dict[str, float] = {}
    for stage in planner.stages:
        own = planner.setting(stage)
        estimate = ESTIMATES[stage.name](own)
        probed = probe.seconds(planner.probed, stage.name, estimate, own.machines)
        seconds, spread = _expected(estimate, corrections.get(stage.name), probed)
        found = _stage_plan(stage, own, estimate, seconds, spread, _took(planner.context, stage))
        if found["took"] is not None and ran_there:
            corrections[stage.name] = found["took"] / max(estimate.duration, 1e-9)
        if found["took"] is None:
            problems += fits.problems(stage, own, estimate, limit_of(stage))
        plans.append(found)
    used = planner.setting(planner.stages[0]).machines.hardware
    first, source = planner.lengths(1)
    return {
        "model": planner.model,
        "parameters": planner.shape.parameters,
        "languages": {lang: vars(own) for lang, own in first.items()},
        "response_lengths": source,
        "stages": plans,
        "totals": _totals(plans),
        "unit": "GPU-hours" if used.gpu else "node-hours",
        "currency": used.currency,
        "problems": list(dict.fromkeys(problems)),
        "certificate": certifying.cost(planner, plans),
        "probe": planner.probed,
    }


def _expected(estimate: Estimate, correction: float | None, probed: float | None) -> tuple[float, float]:
    """Seconds that a stage is expected to take, and the share by which it may differ.

    By an earlier iteration, else by a probe, else by the estimate alone.
    """
    if correction is not None:
        return correction * estimate.duration, _MEASURED
    if probed is not None:
        return probed, _MEASURED
    return estimate.duration, _UNMEASURED


def _took(context: Context, stage: Stage) -> float | None:
    manifest = read_manifest(stage.artifact(context).folder)
    return None if manifest is None else manifest["seconds"]


def _stage_plan(
    stage: Stage, own: Setting, estimate: Estimate, seconds: float, spread: float, took: float | None
) -> StagePlan:
    machines = own.machines
    hours = (seconds if took is None else took) / 3600 * (machines.count if machines.hardware.gpu else machines.nodes)
    price = machines.hardware.price
    return {
        "stage": str(stage),
        "processors": f"{machines.count} {machines.hardware.name}",
        "tokens": estimate.tokens,
        "operations": estimate.operations,
        "seconds": seconds,
        "low": seconds * (1 - spread),
        "high": seconds * (1 + spread),
        "memory": dict(estimate.memory),
        "room": machines.memory,
        "disk": estimate.disk,
        "scratch": estimate.scratch,
        "processor_hours": hours,
        "price": None if price is None else price * hours,
        "note": estimate.note,
        "took": took,
    }


def _totals(plans: Sequence[StagePlan]) -> Totals:
    end = peak = 0.0
    for own in plans:
        end += own["disk"]
        peak = max(peak, end + own["scratch"])
    prices = [own["price"] for own in plans if own["price"] is not None]
    return {
        "seconds": sum(_or(own["took"], own["seconds"]) for own in plans),
        "low": sum(_or(own["took"], own["low"]) for own in plans),
        "high": sum(_or(own["took"], own["high"]) for own in plans),
        "processor_hours": sum(own["processor_hours"] for own in plans),
        "price": sum(prices) if prices else None,
        "disk_end": end,
        "disk_peak": peak,
    }


def _or(took: float | None, planned: float) -> float:
    return planned if took is None else took

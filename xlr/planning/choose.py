"""The fastest settings that fit the machines, and time limits with room to spare."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from xlr.planning.fits import changed, engine_sizes, overridden
from xlr.planning.planfile import StagePlan
from xlr.planning.planner import Planner
from xlr.planning.setting import Estimate, Setting
from xlr.planning.work import ESTIMATES
from xlr.settings.config import Config
from xlr.settings.slurmconfig import JobKindConfig

_ROOM = 0.95  # share of the memory that settings may be planned to fill
_NOISE = 0.95  # of a time: what is not faster than this counts as equally fast
_TOKENS = (8192, 4096, 2048, 16384)
_SLOTS = (1024, 768, 512, 384, 256, 128)
_MARGIN, _STEP_MINUTES = 1.2, 30  # of time limits: times the highest estimate, rounded up


def settings(planner: Planner) -> dict[str, Any]:
    """The settings with which a run fits its machines, or is faster by more than the noise of its estimate.

    They change results by rounding at most, but for `generate.max_num_seqs`, with which vLLM samples other responses of
    the same distribution.

    Returns:
        Dotted key -> value, without those that the configuration has already.
    """
    found: dict[str, Any] = {}
    first = {stage.name: planner.setting(stage) for stage in reversed(planner.stages)}
    for section in ("align", "train"):
        if section in first:
            found |= _fastest(first[section], _training(section, first[section]), partial(_with_reference, section))
    if "score" in first:
        found |= _fastest(first["score"], _scoring(), ESTIMATES["score"])
    if "generate" in first and planner.context.config.generate.backend == "vllm":
        found |= _fastest(first["generate"], _engines(first["generate"]), ESTIMATES["generate"])
    return {key: value for key, value in found.items() if list(changed(planner.context.config, {key: value}))}


def _fastest(
    own: Setting, candidates: Iterable[dict[str, Any]], estimated: Callable[[Setting], Estimate]
) -> dict[str, Any]:
    """The candidate that fits in the least time, and of equally fast ones the first.

    Nothing if none fits, or if the configuration fits and is as fast but for noise.
    """
    best: tuple[float, dict[str, Any]] | None = None
    for overrides in ({}, *candidates):
        estimate = estimated(replace(own, config=overridden(own.config, overrides)))
        fits = estimate.peak <= _ROOM * own.machines.memory and not estimate.note
        if fits and (best is None or estimate.duration < _NOISE * best[0]):
            best = estimate.duration, overrides
    return best[1] if best else {}


def _training(section: str, own: Setting) -> Iterator[dict[str, Any]]:
    modes = ("frozen",) if "kto" in own.training.loss_types else ("frozen", "cached")  # see the settings' checks
    for recomputed, mode, tokens in itertools.product(("selective", False, True), modes, _TOKENS):
        yield {
            f"{section}.gradient_checkpointing": recomputed,
            f"{section}.reference_mode": mode,
            f"{section}.micro_batch_tokens": tokens,
        }


def _with_reference(section: str, own: Setting) -> Estimate:
    """A training, with the time of the stage that caches its reference."""
    estimate = ESTIMATES[section](own)
    if own.training.used_reference != "cached":
        return estimate
    reference = ESTIMATES["reference"](own)
    return replace(estimate, seconds=estimate.seconds + reference.seconds, fixed=estimate.fixed + reference.fixed)


def _scoring() -> Iterator[dict[str, Any]]:
    """Both models at a time, before one after the other."""
    for one, tokens in itertools.product((False, True), (16384, 8192, 4096)):
        yield {"score.batch_tokens": tokens, "ray.one_model_at_a_time": one}


def _engines(own: Setting) -> Iterator[dict[str, Any]]:
    """As few GPUs an engine as hold many responses at a time. A task has four times as many."""
    for gpus, slots in itertools.product(engine_sizes(own), _SLOTS):
        yield {
            "generate.tensor_parallel_size": gpus,
            "generate.max_num_seqs": slots,
            "generate.batch_size": 4 * slots,
        }


def limits(plans: Sequence[StagePlan], job_of: Callable[[str], str]) -> Mapping[str, str]:
    """A time limit for each kind of job, in the format of sbatch: of its longest iteration, with a margin.

    A kind with a stage that is not timed, such as judging, has none.

    Args:
        job_of: name of a stage -> kind of its job.
    """
    sums: dict[tuple[str, str], float] = {}
    untimed = set()
    for own in plans:
        name, _, iteration = own["stage"].partition(" ")
        if not own["seconds"]:
            untimed.add(job_of(name))
        if own["took"] is None:
            key = job_of(name), iteration
            sums[key] = sums.get(key, 0.0) + own["high"]
    found: dict[str, int] = {}
    for (kind, _), seconds in sums.items():
        if kind in untimed:
            continue
        minutes = _STEP_MINUTES * math.ceil(_MARGIN * seconds / 60 / _STEP_MINUTES)
        found[kind] = max(found.get(kind, 0), minutes, _STEP_MINUTES)
    return {kind: f"{minutes // 60}:{minutes % 60:02d}:00" for kind, minutes in found.items()}


def with_limits(config: Config, times: Mapping[str, str]) -> Config:
    """The configuration with these time limits of kinds of jobs."""
    jobs = dict(config.slurm.jobs)
    for kind, time in times.items():
        jobs[kind] = jobs.get(kind, JobKindConfig()).model_copy(update={"time": time})
    return config.model_copy(update={"slurm": config.slurm.model_copy(update={"jobs": jobs})})

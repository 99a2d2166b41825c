"""The rates of the machine at hand: a small part of each stage is run, and compared with its plan."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xlr import pipeline
from xlr.data.preferences import load_preferences
from xlr.errors import UserError
from xlr.pipeline import Stage
from xlr.planning.machines import Machines
from xlr.planning.planfile import Measured, Probe
from xlr.planning.planner import Planner
from xlr.planning.setting import Estimate
from xlr.planning.work import ESTIMATES
from xlr.run.context import Context
from xlr.run.files import remove, write_text
from xlr.run.manifests import read_manifest
from xlr.settings.config import Config
from xlr.settings.pairconfig import PairConfig
from xlr.settings.trainconfig import TrainConfig
from xlr.tracking.metricslog import whole_rows

_FOLDER = "probe"
_PROMPTS, _STEPS = 8, 2
_LIKE = {
    "translate": "generate",
    "check": "generate",
    "converse": "generate",
    "reference": "score",
    "align": "train",
    "train": "align",
}
"""Stage -> one whose work is of the same kind, for stages that were not probed themselves."""


def run(context: Context, machines_of: Callable[[Stage], Machines]) -> Probe:
    """Run a small part of each stage here, in a folder of the run directory that is removed afterwards.

    Eight prompts of each language are sampled, scored and paired, and two steps are trained.

    Args:
        machines_of: this machine.

    Raises:
        UserError: a judge grades responses, which cannot be timed; or a stage cannot run.
    """
    if "judge" in context.config.score.weights:
        raise UserError("--probe: the judge of score.reward cannot be timed; plan without it")
    context.run.create()
    folder = context.run.path / _FOLDER
    small = Context(_small(context, folder))
    stages = pipeline.stages(small.config)
    with pipeline.holding(small, stages):
        pipeline.run_all(small, stages)
    planner = Planner(small, machines_of)  # after the run, so that it knows how long responses are
    found: dict[str, Measured] = {}
    for stage in stages:
        estimate = ESTIMATES[stage.name](planner.setting(stage))
        if estimate.seconds and stage.name != "pair":
            found[stage.name] = _measured(small, stage, estimate)
    hardware = machines_of(stages[0]).hardware
    remove(folder)
    responses = {lang: own.response for lang, own in planner.lengths(1)[0].items()}
    return {"on": hardware.name, "rate": hardware.rate, "stages": found, "responses": responses}


def seconds(probe: Probe | None, stage: str, estimate: Estimate, machines: Machines) -> float | None:
    """What a stage takes by a probe, whose figures correct each kind of its work; None if there was none."""
    own = of_stage(probe, stage, machines)
    if own is None:
        return None
    parts = estimate.parts or {stage: estimate.seconds}
    work = sum(of_kind * (of_stage(probe, kind, machines) or own)["work"] for kind, of_kind in parts.items())
    return work + own["fixed"]


def of_stage(probe: Probe | None, stage: str, machines: Machines) -> Measured | None:
    """What a probe says of a stage; None if there was none on such machines, or of such work.

    CPUs are measured with each plan. What the probe found counts for the rate that they had then.
    """
    if probe is None or probe["on"] != machines.hardware.name:
        return None
    own = probe["stages"].get(stage) or probe["stages"].get(_LIKE.get(stage, ""))
    return None if own is None else {**own, "work": own["work"] * machines.hardware.rate / probe["rate"]}


def _small(context: Context, folder: Path) -> Config:
    """A small part of a run: its settings, with few prompts and steps, and without what is measured otherwise.

    Args:
        folder: holds the small run and the preferences that it is aligned on.
    """
    config = context.config
    few = {"limit": _PROMPTS, "slice": None}
    held_out = config.evaluate.prompts
    evaluate: dict[str, Any] = {
        "prompts": held_out and held_out.model_copy(update=few),
        **dict.fromkeys(("preferences", "checked", "turns", "benchmarks")),
        "models": {},
        "every": 1,
    }
    align = _short(config.align)
    if config.model.aligned is None and config.align.preferences is not None:
        path = folder / "preferences.jsonl"
        _write_preferences(context, path)
        align = align.model_copy(update={"preferences": str(path)})
    return config.model_copy(
        update={
            "run_dir": str(folder / "run"),
            "reuse": (),
            "iterations": 1,
            "stop_early": False,
            "prompts": config.prompts.model_copy(update=few),
            "pair": PairConfig(by=config.pair.by),
            "evaluate": config.evaluate.model_copy(update=evaluate),
            "judge": config.judge.model_copy(update={"model": None}),
            "align": align,
            "train": _short(config.train),
        }
    )


def _short(train: TrainConfig) -> TrainConfig:
    changes = {"max_steps": _STEPS, "save_steps": 0, "save_minutes": 0.0, "report_to": (), "replay_english": 0.0}
    return train.model_copy(update=changes)


def _write_preferences(context: Context, path: Path) -> None:
    """As many of the align stage's preferences as its steps take."""
    config = context.config
    given = context.pinned(config.align.preferences)
    assert given is not None
    some = load_preferences(given, config.model.system_prompt)[: _STEPS * config.align.global_batch_size]
    rows = ({"prompt": one.prompt, "chosen": one.chosen, "rejected": one.rejected} for one in some)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _measured(context: Context, stage: Stage, estimate: Estimate) -> Measured:
    manifest = read_manifest(stage.artifact(context).folder)
    assert manifest is not None
    if stage.kind.in_ranks:
        rows = whole_rows(context.run.iteration(stage.iteration) / "metrics.jsonl")
        steps = [row["num_tokens"] / row["perf/tokens_per_second"] for row in rows]
        work = len(steps) * steps[-1]  # the first step is slower: it allocates memory
        spent = sum(steps)
    else:
        work = spent = manifest["time"]["compute"]
    return {
        "work": work / estimate.seconds,
        "fixed": max(manifest["seconds"] - spent, 0.0),
        "memory": manifest["memory"],
    }

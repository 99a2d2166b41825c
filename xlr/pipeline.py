"""The stages of a run, in order, and what each needs. `xlr run` walks them; `xlr status` shows them."""

import logging
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from xlr import evaluation, pairs, progress, reference, responses, scores, training
from xlr.config import Config, TrainConfig, dump
from xlr.dsconfig import policy_config, reference_config
from xlr.encoding import load_tokenizer, require_same_tokenizer
from xlr.prompts import load_preferences, load_prompts
from xlr.stage import PROGRESS, Context
from xlr.store import Artifact, manifest_path, read_json, write_text

_MODULES: dict[str, ModuleType] = {
    "align": training,
    "generate": responses,
    "score": scores,
    "pair": pairs,
    "reference": reference,
    "train": training,
    "evaluate": evaluation,
}


@dataclass(frozen=True)
class Stage:
    """One stage of one iteration; align and the start's evaluation belong to iteration 0."""

    name: str
    iteration: int

    def __str__(self) -> str:
        return self.name if self.name == "align" else f"{self.name} {self.iteration}"

    def artifact(self, context: Context) -> Artifact:
        """What the stage makes."""
        return _MODULES[self.name].artifact(context, self.iteration)


def stages(config: Config) -> list[Stage]:
    """All stages of a run in an order they can run in."""
    evaluates = bool(config.evaluate.prompts or config.evaluate.preferences)
    plan = [] if config.model.aligned else _training(config.align, "align", 0)
    for iteration in range(config.iterations + 1):
        if iteration:
            plan += [Stage(name, iteration) for name in ("generate", "score", "pair")]
            plan += _training(config.train, "train", iteration)
        if evaluates:
            plan.append(Stage("evaluate", iteration))
    return plan


def _training(train: TrainConfig, name: str, iteration: int) -> list[Stage]:
    before = [Stage("reference", iteration)] if train.reference_mode == "cached" else []
    return [*before, Stage(name, iteration)]


def prepare(context: Context) -> None:
    """With the run directory locked: tidy it, check what is already there against the configuration, and record it.

    Raises:
        UserError: the prompts are not usable, or a finished artefact was made with another configuration.
    """
    _ = context.prompts
    context.run.sweep()
    for stage in stages(context.config):
        artifact = stage.artifact(context)
        if artifact.manifest() is not None:
            artifact.remove_pieces()
    write_text(context.run.path / "config.yaml", dump(context.config))


def check(context: Context) -> None:
    """Find bad input of later stages now, and not after hours of computing.

    Raises:
        UserError: naming it.
    """
    from xlr.models import load_config  # imports torch
    from xlr.vllmsampler import require_installed

    config = context.config
    _ = context.encoder
    if config.model.aligned:
        aligned, initial = config.model.aligned, config.model.initial
        require_same_tokenizer(load_tokenizer(aligned), load_tokenizer(initial), aligned, initial)
    hidden_size = load_config(config.model.initial).get_text_config().hidden_size
    for train in (config.align, config.train):
        policy_config(train, config.model.dtype == "bfloat16", hidden_size)
        reference_config(train, config.model.dtype == "bfloat16", hidden_size)
    if config.evaluate.prompts:
        load_prompts(config.evaluate.prompts, config.languages)
    if config.generate.backend == "vllm":
        require_installed()
    for preferences in (config.align.preferences, config.evaluate.preferences):
        if preferences:
            load_preferences(preferences)


def execute(context: Context, stage: Stage) -> None:
    """Run a stage, unless its manifest proves it done."""
    if stage.artifact(context).manifest() is not None:
        progress.console.print(f"{stage}: done already")
        return
    progress.console.print(f"{stage}")
    log = logging.FileHandler(context.run.log(stage.name, stage.iteration), encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(log)
    logging.getLogger("xlr").setLevel(logging.INFO)
    context.clock = progress.Clock()
    if stage.name in ("align", "train"):
        context.close()  # training needs the memory that the workers hold
    try:
        facts = _MODULES[stage.name].make(context, stage.iteration)
        logging.getLogger("xlr").info("%s finished: %s", stage, facts)
    finally:
        logging.getLogger().removeHandler(log)
        log.close()
    if context.clock.seconds:
        progress.console.print(context.clock.table())
    progress.console.print(f"{stage}: finished in {progress.duration(context.clock.total)}")


def run_all(context: Context) -> None:
    """Every stage of the run that is not done yet."""
    try:
        if any(stage.artifact(context).manifest() is None for stage in stages(context.config)):
            check(context)
        for stage in stages(context.config):
            execute(context, stage)
    finally:
        context.close()


def status(context: Context) -> list[dict[str, Any]]:
    """What is known of each stage: state (done, running, interrupted, waiting), rows, seconds, and of the stage that
    is not finished how far it is."""
    busy = context.run.holder() is not None
    found: list[dict[str, Any]] = []
    for stage in stages(context.config):
        folder = stage.artifact(context).folder
        manifest = read_json(manifest_path(folder)) if manifest_path(folder).is_file() else None
        state = "done" if manifest else "waiting"
        if not manifest and all(row["state"] == "done" for row in found):
            begun = (
                any(folder.parent.glob(f"{folder.name}.*")) or context.run.log(stage.name, stage.iteration).is_file()
            )
            state = "running" if busy else "interrupted" if begun else "waiting"
        found.append(
            {
                "stage": str(stage),
                "state": state,
                "rows": manifest["rows"] if manifest else None,
                "seconds": manifest["seconds"] if manifest else None,
                "progress": None if manifest else _progress(folder),
            }
        )
    return found


def _progress(folder: Path) -> dict[str, Any] | None:
    """The newest state that a step of an unfinished stage left beside its pieces."""
    notes = sorted(folder.parent.glob(f"{folder.name}.*/{PROGRESS}"), key=lambda note: note.stat().st_mtime)
    return read_json(notes[-1]) if notes else None

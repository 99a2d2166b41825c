"""The stages of a run, in order, and what each needs. `xlr run` walks them, `xlr submit` makes jobs of them."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from xlr import progress
from xlr.config import Config, TrainConfig, dump
from xlr.data.encoding import load_tokenizer, require_same_tokenizer
from xlr.data.preferences import load_preferences
from xlr.errors import UserError
from xlr.evaluation import answers as evaluation
from xlr.evaluation import judgements
from xlr.rewarding import pairs, responses, scores
from xlr.run import lease
from xlr.run.artifact import Artifact, Iteration, manifest_path, read_json, write_text
from xlr.run.context import PROGRESS, Context
from xlr.training import model as training
from xlr.training import reference
from xlr.training.dsconfig import policy_config, reference_config

_MODULES: dict[str, ModuleType] = {
    "align": training,
    "generate": responses,
    "score": scores,
    "pair": pairs,
    "reference": reference,
    "train": training,
    "evaluate": evaluation,
    "judge": judgements,
}

TRAINING = ("align", "train")  # the stages that compute in ranks; the others compute in Ray workers


@dataclass(frozen=True)
class Stage:
    """One stage of one iteration; align and the start's evaluation belong to iteration 0. Models that are evaluated
    beside the iterations stand for one by their name."""

    name: str
    iteration: Iteration

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
    if evaluates:
        plan += [Stage("evaluate", name) for name in config.evaluate.models]
    if config.judge.model:
        models: list[Iteration] = [*range(config.iterations + 1), *config.evaluate.models]
        plan += [Stage("judge", model) for model in models if model != config.judge.baseline]
    return plan


def _training(train: TrainConfig, name: str, iteration: int) -> list[Stage]:
    before = [Stage("reference", iteration)] if train.reference_mode == "cached" else []
    return [*before, Stage(name, iteration)]


@contextlib.contextmanager
def holding(context: Context, plan: Sequence[Stage]) -> Iterator[None]:
    """Keep every other xlr from these stages while the block runs, with all that is already there checked.

    Raises:
        UserError: another xlr is at one of them, the prompts are not usable, or a finished artefact or a stage that
            is running was made with another configuration.
    """
    context.run.create()
    with lease.held(context.run.leases, [stage.artifact(context).title for stage in plan]):
        _ = context.prompts
        for stage in stages(context.config):
            artifact = stage.artifact(context)
            finished = artifact.manifest() is not None
            if stage in plan:
                artifact.tidy(finished)
        _record(context, plan)
        yield


def _record(context: Context, plan: Sequence[Stage]) -> None:
    """Write the configuration, which processes of this run that start later will read."""
    recorded, text = context.run.path / "config.yaml", dump(context.config)
    if recorded.is_file() and recorded.read_text(encoding="utf-8") == text:
        return
    for stage in stages(context.config):
        user = None if stage in plan else holder(context, stage)
        if user:
            raise UserError(
                f"{recorded}: differs from this configuration, with which {stage} is being made now ({user}); "
                "wait for it, or use another run_dir"
            )
    write_text(recorded, text)


def holder(context: Context, stage: Stage) -> str | None:
    """Which process is at a stage now, if any."""
    return lease.holder(context.run.leases, stage.artifact(context).title)


def needs(context: Context) -> dict[Stage, list[Stage]]:
    """Which stages each stage reads from, as their artefacts say."""
    plan = stages(context.config)
    makers = {stage.artifact(context).folder: stage for stage in plan}
    return {
        stage: [makers[Path(path)] for path in stage.artifact(context).inputs.values() if Path(path) in makers]
        for stage in plan
    }


def check(context: Context) -> None:
    """Find bad input of later stages now, and not after hours of computing.

    Raises:
        UserError: naming it.
    """
    from xlr.model.vllmsampler import require_installed
    from xlr.model.weights import load_config  # imports torch

    config = context.config
    _ = context.encoder
    if config.model.aligned:
        aligned, initial = config.model.aligned, config.model.initial
        require_same_tokenizer(load_tokenizer(aligned), load_tokenizer(initial), aligned, initial)
    hidden_size = load_config(config.model.initial).get_text_config().hidden_size
    for train in (config.align, config.train):
        policy_config(train, config.model.dtype == "bfloat16", hidden_size)
        reference_config(train, config.model.dtype == "bfloat16", hidden_size)
    _ = context.held_out
    for name in config.evaluate.models:
        context.encoder_of(name)
    if config.judge.model:
        judgements.check(context)
    if config.generate.backend == "vllm":
        require_installed()
    for preferences in (config.align.preferences, config.evaluate.preferences):
        if preferences:
            load_preferences(preferences)


def execute(context: Context, stage: Stage) -> None:
    """Run a stage, unless its manifest proves it done."""
    if done(context, stage):
        progress.console.print(f"{stage}: done already")
        return
    progress.console.print(f"{stage}")
    log = logging.FileHandler(context.run.log(stage.name, stage.iteration), encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(log)
    logging.getLogger("xlr").setLevel(logging.INFO)
    context.clock = progress.Clock()
    if stage.name in TRAINING:
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


def run_all(context: Context, plan: Sequence[Stage]) -> None:
    """Every stage of the plan that is not done yet; its leases are held."""
    try:
        for stage in plan:
            execute(context, stage)
    finally:
        context.close()


def done(context: Context, stage: Stage) -> bool:
    """Whether a manifest proves a stage done, of this configuration.

    Raises:
        UserError: it was made with another configuration.
    """
    return stage.artifact(context).manifest() is not None


def status(context: Context) -> list[dict[str, Any]]:
    """What is known of each stage: state (done, running, interrupted, waiting), rows, seconds, and of a stage that is
    not finished how far it is."""
    found: list[dict[str, Any]] = []
    for stage in stages(context.config):
        folder = stage.artifact(context).folder
        manifest = read_json(manifest_path(folder)) if manifest_path(folder).is_file() else None
        state = "done"
        if not manifest:
            log = context.run.log(stage.name, stage.iteration)
            begun = log.is_file() or any(folder.parent.glob(f"{folder.name}.*"))
            state = "waiting" if not begun else "running" if holder(context, stage) else "interrupted"
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

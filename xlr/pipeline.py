"""The stages of a run in order, and what each needs. `xlr run` executes them; `xlr submit` makes jobs of them."""

import contextlib
import importlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from typing_extensions import TypedDict

from xlr.configfile import dump
from xlr.errors import UserError
from xlr.leases import lease
from xlr.records import START, ModelKey
from xlr.run import identity, sharing
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import read_json, remove, tidy, write_text
from xlr.run.manifests import manifest_path, read_manifest
from xlr.settings.config import Config
from xlr.stages import KINDS, STAGES, StageKind
from xlr.terminal.console import console, duration
from xlr.terminal.progress import Clock, StepState
from xlr.work.pieces import PROGRESS


class StageModule(Protocol):
    """The interface of a module that implements a kind of stage."""

    def iterations(self, config: Config) -> Sequence[ModelKey]:
        """The iterations and the models of evaluate.models for which a run has this stage."""

    def artifact(self, context: Context, iteration: Any, /) -> Artifact:
        """The artefact of one iteration or model, with the settings and inputs that decide it."""

    def check(self, context: Context) -> None:
        """Check the input before anything is computed.

        Raises:
            UserError: the input is bad.
        """

    def make(self, context: Context, iteration: Any, /) -> Any:
        """Make the artefact, continuing from finished pieces. Returns facts for the log."""


@dataclass(frozen=True)
class Stage:
    """One stage of one iteration. For a model of evaluate.models, the iteration is the name of the model."""

    name: str
    iteration: ModelKey

    def __str__(self) -> str:
        known = KINDS.get(self.name)  # messages name stages that do not exist, too
        return self.name if known and known.only_start else f"{self.name} {self.iteration}"

    @property
    def kind(self) -> StageKind:
        """Its entry in the registry."""
        return KINDS[self.name]

    @property
    def module(self) -> StageModule:
        """The module that implements it."""
        return _module(self.kind)

    def artifact(self, context: Context) -> Artifact:
        """The artefact that the stage makes."""
        return self.module.artifact(context, self.iteration)


def _module(kind: StageKind) -> StageModule:
    return cast(StageModule, importlib.import_module(kind.module))


def stages(config: Config) -> list[Stage]:
    """All stages of a run, in an order in which they can run."""
    belongs = {kind: _module(kind).iterations(config) for kind in STAGES}
    return [
        Stage(kind.name, model)
        for last in (False, True)
        for model in config.models
        for kind in STAGES
        if (kind.comes_last and not config.stop_early) is last and model in belongs[kind]
    ]


@contextlib.contextmanager
def holding(
    context: Context, plan: Sequence[Stage], accept: Collection[str] = (), taking: bool = True
) -> Iterator[None]:
    """Hold the leases of these stages while the block runs, after checking the run directory.

    Args:
        accept: kinds of changed conditions under which their unfinished pieces may be continued; see `identity`.
        taking: first take over what the runs in `reuse` have made.

    Raises:
        UserError: another process works on one of the stages, the prompts are not usable, or a finished artefact or a
            running stage was made with another configuration.
    """
    context.run.create()
    context.look_up()
    with lease.held(context.run.leases, [stage.artifact(context).title for stage in plan]):
        _ = context.prompts
        for stage in stages(context.config):
            artifact = stage.artifact(context)
            finished = artifact.manifest() is not None
            if stage in plan:
                artifact.tidy(finished)
                if accept:
                    artifact.accept(accept)
        for folder in (context.run.path, context.run.path / "slurm"):
            tidy(folder)
        _record(context, plan)
        if taking:
            _take_over(context, plan)
        yield


def _take_over(context: Context, plan: Sequence[Stage]) -> None:
    """Take over what the runs in `reuse` have finished of this run, but not stages that another process works on.

    Raises:
        UserError: there is no such run.
    """
    for place in context.config.reuse:
        if not Path(place).is_dir():
            raise UserError(f"reuse: {place}: no such folder; name run directories, folders of them, or []")
    for stage in stages(context.config) if context.config.reuse else ():
        artifact = stage.artifact(context)
        if artifact.manifest() is None and (stage in plan or holder(context, stage) is None):
            sharing.take_over(artifact, context.config.reuse)


def _record(context: Context, plan: Sequence[Stage]) -> None:
    """Write the configuration and the commits of hub repositories, which later processes of this run read."""
    context.record_commits()
    recorded, text = context.run.path / "config.yaml", dump(context.given)
    if recorded.is_file() and recorded.read_text(encoding="utf-8") == text:
        return
    others = {stage.artifact(context).title: stage for stage in stages(context.config) if stage not in plan}
    found = lease.first_holder(context.run.leases, list(others))
    if found:
        raise UserError(
            f"{recorded}: differs from this configuration, and {others[found[0]]} is running with the recorded one "
            f"({found[1]}); wait until it ends, or use another run_dir"
        )
    write_text(recorded, text)


def holder(context: Context, stage: Stage) -> str | None:
    """The process that seems to work on a stage now, in words; for display."""
    return lease.holder(context.run.leases, stage.artifact(context).title)


def needs(context: Context) -> dict[Stage, list[Stage]]:
    """Stage -> the stages that it reads from, according to the inputs of its artefact."""
    plan = stages(context.config)
    makers = {stage.artifact(context).folder: stage for stage in plan}
    return {
        stage: [
            makers[Path(str(source))]
            for source in stage.artifact(context).inputs.values()
            if Path(str(source)) in makers
        ]
        for stage in plan
    }


def awaited(context: Context) -> dict[Stage, list[Stage]]:
    """Stage -> the stages that must be finished before it.

    Those that it reads from, and with `stop_early` those of the iteration before, which decide whether it is made.
    """
    found = needs(context)
    if not context.config.stop_early:
        return found
    return {
        stage: list(dict.fromkeys([*read, *(other for other in found if _decides(other, stage))]))
        for stage, read in found.items()
    }


def _decides(stage: Stage, later: Stage) -> bool:
    """Whether a stage belongs to the iteration after which it is decided whether there is a later one."""
    number, next_one = stage.iteration, later.iteration
    if not isinstance(number, int) or not isinstance(next_one, int) or next_one <= START + 1:
        return False
    # What is measured of pi^0 is compared with; the later iterations wait for the second, which waits for it.
    return number == next_one - 1 or (number, next_one) == (START, START + 2)


def check(context: Context) -> None:
    """Check the input of all stages before anything is computed.

    Raises:
        UserError: the input of a stage is bad.
    """
    for check_stage in dict.fromkeys(stage.module.check for stage in stages(context.config)):
        check_stage(context)


def execute(context: Context, stage: Stage) -> None:
    """Run a stage, unless it is finished according to its manifest, or a run in `reuse` has made the same."""
    if done(context, stage):
        console.print(f"{stage}: done already")
        return
    artifact, shared = stage.artifact(context), context.config.reuse
    with sharing.alone(artifact, shared):
        if not sharing.take_over(artifact, shared):
            _make(context, stage)


def _make(context: Context, stage: Stage) -> None:
    console.print(f"{stage}")
    log = logging.FileHandler(context.run.log(stage.name, stage.iteration), encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(log)
    logging.getLogger("xlr").setLevel(logging.INFO)
    context.clock = Clock()
    inputs = stage.artifact(context).input_digests
    if stage.kind.in_ranks:
        context.close()  # training needs the memory that the workers hold
    try:
        facts = stage.module.make(context, stage.iteration)
        _require_unchanged(stage.artifact(context), inputs)
        logging.getLogger("xlr").info("%s finished: %s", stage, facts)
    finally:
        logging.getLogger().removeHandler(log)
        log.close()
    if context.clock.seconds:
        console.print(context.clock.table())
    console.print(f"{stage}: finished in {duration(context.clock.total)}")


def _require_unchanged(artifact: Artifact, inputs: Mapping[str, str | None]) -> None:
    """Check that the inputs of a stage that has just finished are still those that it read.

    Raises:
        UserError: one was changed while the stage ran; the artefact then does not count as finished.
    """
    for change in identity.changes(inputs, artifact.input_digests):
        remove(manifest_path(artifact.folder))
        raise UserError(
            f"{artifact.inputs[change.key]}: was changed while {artifact.title} was made from it; start the run again"
        )


def _never(_context: Context, _iteration: int) -> bool:
    return False


def run_all(context: Context, plan: Sequence[Stage], ends: Callable[[Context, int], bool] = _never) -> None:
    """Run every unfinished stage of the plan. The caller holds their leases.

    Args:
        ends: says after the last stage of an iteration whether the run ends with it. Later ones are then left out.
    """
    last_of = {stage.iteration: stage for stage in plan}
    try:
        for stage in plan:
            if isinstance(stage.iteration, int) and stage.iteration > context.config.iterations:
                continue
            execute(context, stage)
            if (
                isinstance(stage.iteration, int)
                and last_of[stage.iteration] == stage
                and ends(context, stage.iteration)
            ):
                context.end_with(stage.iteration)
    finally:
        context.close()


def done(context: Context, stage: Stage) -> bool:
    """Whether a manifest proves a stage finished with this configuration.

    Raises:
        UserError: it was made with another configuration.
    """
    return stage.artifact(context).manifest() is not None


class StageStatus(TypedDict):
    """A stage as `xlr status` shows it."""

    stage: str
    state: str
    """done, running, interrupted or waiting."""
    rows: int | None
    seconds: float | None
    memory: int
    """Peak memory of a process, in bytes; 0 where it is not known."""
    progress: StepState | None
    """The progress of an unfinished stage; see `progress.Step.state`."""


def status(context: Context) -> list[StageStatus]:
    """The state of each stage."""
    return [_status(context, stage) for stage in stages(context.config)]


def _status(context: Context, stage: Stage) -> StageStatus:
    folder = stage.artifact(context).folder
    manifest = read_manifest(folder)
    if manifest is not None:
        return {
            "stage": str(stage),
            "state": "done",
            "rows": manifest["rows"],
            "seconds": manifest["seconds"],
            "memory": manifest.get("memory", 0),
            "progress": None,
        }
    begun = context.run.log(stage.name, stage.iteration).is_file() or any(folder.parent.glob(f"{folder.name}.*"))
    state = "waiting" if not begun else "running" if holder(context, stage) else "interrupted"
    progress = _progress(folder)
    return {"stage": str(stage), "state": state, "rows": None, "seconds": None, "memory": 0, "progress": progress}


def _progress(folder: Path) -> StepState | None:
    """The newest progress that a step of an unfinished stage wrote beside its pieces."""
    notes = sorted(folder.parent.glob(f"{folder.name}.*/{PROGRESS}"), key=lambda note: note.stat().st_mtime)
    if not notes:
        return None
    state: StepState = read_json(notes[-1], StepState, "delete it; it only holds the progress view")
    return state

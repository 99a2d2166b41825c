"""What every stage needs: the configuration, the run directory, the workers, and work that resumes."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from xlr import progress
from xlr.config import Config
from xlr.data.encoding import ChatEncoder, load_tokenizer
from xlr.data.prompts import load_held_out, load_prompts
from xlr.errors import UserError
from xlr.records import Prompt
from xlr.run.artifact import Artifact, Iteration, RunDir, manifest_path, read_rows, write_json, write_rows

Row = TypeVar("Row")

PROGRESS = "progress.json"


@dataclass
class Context:
    """One run as its stages see it."""

    config: Config
    run: RunDir = field(init=False)
    clock: progress.Clock = field(default_factory=progress.Clock)
    """Where the time of the present stage goes."""

    def __post_init__(self) -> None:
        self.run = RunDir(self.config.run_dir)

    @cached_property
    def pool(self) -> Any:
        """The workers; they start with the first task."""
        from xlr.cluster.raypool import Pool

        return Pool(self.config.ray, self.config.model, self.config.generate)

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        """lang -> training instructions; English is always there."""
        return load_prompts(self.config.prompts, self.config.languages)

    @cached_property
    def held_out(self) -> dict[str, list[Prompt]]:
        """lang -> instructions of `evaluate.prompts`, the same in every language; English is always there."""
        section = self.config.evaluate.prompts
        return load_held_out(section, self.config.evaluated_languages) if section else {}

    @property
    def questions(self) -> list[Prompt]:
        """The held-out instructions that models answer, language by language."""
        return [prompt for lang in self.config.evaluated_languages for prompt in self.held_out.get(lang, ())]

    @cached_property
    def encoder(self) -> ChatEncoder:
        """The tokenizer and chat template that all models of the run share."""
        name = self.config.model.aligned or self.config.model.initial
        return ChatEncoder(load_tokenizer(name), name)

    def encoder_of(self, iteration: Iteration) -> ChatEncoder:
        """The tokenizer and chat template of a model; those beside the iterations have their own."""
        if isinstance(iteration, int):
            return self.encoder
        return ChatEncoder(load_tokenizer(self.model(iteration)), self.model(iteration))

    def model(self, iteration: Iteration) -> str:
        """pi^t: what iteration t made; pi^0 is given or made by the align stage; pi^-1 stands for pi_I."""
        if isinstance(iteration, str):
            return self.config.evaluate.models[iteration]
        if iteration < 0:
            return self.config.model.initial
        if iteration == 0 and self.config.model.aligned is not None:
            return self.config.model.aligned
        return str(self.run.iteration(iteration) / "model")

    @property
    def models(self) -> list[Iteration]:
        """All that are evaluated: of the start, of each iteration, and those beside them."""
        return [*range(self.config.iterations + 1), *self.config.evaluate.models]

    def require_model(self, iteration: Iteration) -> str:
        """As `model`, of which the stage that makes it must have finished.

        Raises:
            UserError: it has not.
        """
        model = self.model(iteration)
        if isinstance(iteration, str):
            return model
        if Path(model).parent == self.run.iteration(max(iteration, 0)) and not manifest_path(Path(model)).is_file():
            command = (
                f"xlr train {self.run.path} --iteration {iteration}" if iteration else f"xlr align {self.run.path}"
            )
            raise UserError(f"{model}: not finished yet; run `{command}` first")
        return model

    def reward_reference(self, iteration: int) -> str:
        """The reward's reference in an iteration whose policy is pi^(t-1)."""
        return self.require_model(-1 if self.config.score.reference == "initial" else iteration - 2)

    def close(self) -> None:
        """End the workers, so that training has the machine's memory and GPUs."""
        if "pool" in self.__dict__:
            self.pool.close()


def require(artifact: Artifact, command: str) -> None:
    """Check that an input of a stage is finished.

    Raises:
        UserError: it is not, or it was made with another configuration.
    """
    if artifact.manifest() is None:
        raise UserError(f"{artifact.folder}: not finished yet; run `{command}` first")


@dataclass(frozen=True)
class Work(Generic[Row]):
    """Tasks for the workers, planned once, and the rows that become of their results."""

    method: str
    """The workers' method."""
    tasks: Sequence[tuple[Any, ...]]
    """Its arguments."""
    languages: Sequence[Mapping[str, int]]
    """How many rows of which language each task makes."""
    row_type: type[Row]
    to_rows: Callable[[int, Any], list[Row]]
    """Turns a task's number and result into its rows."""
    num_tokens: Callable[[int, list[Row]], int]
    """Response tokens of a task, once it is finished."""


def resumable(context: Context, artifact: Artifact, parts: str, work: Work[Row], label: str, unit: str) -> list[Row]:
    """Compute the rows of all tasks, each kept in a file as soon as it is finished.

    Args:
        artifact: whose pieces these are; pieces made otherwise are refused.
        parts: name of the folder of pieces.
        label, unit: how the progress is shown; its state lies beside the pieces, for `xlr status`.

    Returns:
        The rows of all tasks, in the order of the plan whatever order they finished in.
    """
    folder = artifact.parts(parts)
    files = [folder / f"{number:06d}.parquet" for number in range(len(work.tasks))]
    missing = {number: task for number, task in enumerate(work.tasks) if not files[number].is_file()}
    totals: Counter[str] = Counter()
    already: Counter[str] = Counter()
    for number, languages in enumerate(work.languages):
        totals.update(languages)
        if number not in missing:
            already.update(languages)
    begun = time.monotonic()
    with progress.step(label, totals, unit, already, partial(write_json, folder / PROGRESS)) as step:
        for number, result in context.pool.map(work.method, missing):
            with context.clock.measure("write"):
                rows = work.to_rows(number, result)
                write_rows(files[number], work.row_type, rows)
            step.workers = context.pool.workers  # those that joined or were lost meanwhile included
            step.advance(work.languages[number], work.num_tokens(number, rows))
    _count_workers(context, time.monotonic() - begun)
    return read_rows(folder, work.row_type)


def _count_workers(context: Context, seconds: float) -> None:
    """Where the time of the workers went, on average, and what they computed on."""
    workers = context.pool.workers
    if workers:
        load, compute = (
            sum(getattr(worker, f"{kind}_seconds") for worker in workers) / len(workers) for kind in ("load", "compute")
        )
        context.clock.seconds.update({"load": load, "compute": compute, "wait": max(seconds - load - compute, 0.0)})
        at_work = [worker for worker in workers if not worker.lost]
        context.clock.count_processors(sum(worker.cpus for worker in at_work), sum(worker.gpus for worker in at_work))

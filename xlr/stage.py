"""What every stage needs: the configuration, the run directory, the workers, and work that resumes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from xlr import progress
from xlr.config import Config
from xlr.encoding import ChatEncoder, load_tokenizer
from xlr.errors import UserError
from xlr.prompts import load_prompts
from xlr.records import Prompt
from xlr.store import Artifact, RunDir, manifest_path, read_rows, write_rows

Row = TypeVar("Row")


@dataclass
class Context:
    """One run as its stages see it."""

    config: Config
    run: RunDir = field(init=False)

    def __post_init__(self) -> None:
        self.run = RunDir(self.config.run_dir)

    @cached_property
    def pool(self) -> Any:
        """The workers; they start with the first task."""
        from xlr.raypool import Pool

        return Pool(self.config.ray, self.config.model, self.config.generate)

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        """lang -> training instructions; English is always there."""
        return load_prompts(self.config.prompts, self.config.languages)

    @cached_property
    def encoder(self) -> ChatEncoder:
        """The tokenizer and chat template that all models of the run share."""
        name = self.config.model.aligned or self.config.model.initial
        return ChatEncoder(load_tokenizer(name), name)

    def model(self, iteration: int) -> str:
        """pi^t: what iteration t made; pi^0 is given or made by the align stage; pi^-1 stands for pi_I."""
        if iteration < 0:
            return self.config.model.initial
        if iteration == 0 and self.config.model.aligned is not None:
            return self.config.model.aligned
        return str(self.run.iteration(iteration) / "model")

    def require_model(self, iteration: int) -> str:
        """As `model`, of which the stage that makes it must have finished.

        Raises:
            UserError: it has not.
        """
        model = self.model(iteration)
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


def resumable(
    artifact: Artifact,
    parts: str,
    row_type: type[Row],
    tasks: Sequence[tuple[Any, ...]],
    sizes: Sequence[int],
    compute: Callable[[Mapping[int, tuple[Any, ...]]], Any],
    to_rows: Callable[[int, Any], list[Row]],
    label: str,
    unit: str,
) -> list[Row]:
    """Compute the rows of all tasks, each kept in a file as soon as it is finished.

    Args:
        artifact: whose pieces these are; pieces made otherwise are refused.
        parts: name of the folder of pieces.
        tasks: the arguments of each task, planned once.
        compute: yields `(task number, result)` for the tasks that are still missing.
        to_rows: turns a task's result into rows.
        sizes: how many units of progress each task is.
        label, unit: how the progress is shown.

    Returns:
        The rows of all tasks, in the order of the plan whatever order they finished in.
    """
    folder = artifact.parts(parts)
    files = [folder / f"{number:06d}.parquet" for number in range(len(tasks))]
    missing = {number: task for number, task in enumerate(tasks) if not files[number].is_file()}
    done = sum(size for number, size in enumerate(sizes) if number not in missing)
    with progress.step(label, sum(sizes), unit, done) as step:
        for number, result in compute(missing):
            write_rows(files[number], row_type, to_rows(number, result))
            step.advance(sizes[number])
    return read_rows(folder, row_type)

"""Runs stages in this process: the real workers' code, without Ray. Sweeps over many changes need it to be quick."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlr import configfile
from xlr.cluster.raypool import Pool
from xlr.model.worker import Worker
from xlr.pipeline import Stage
from xlr.records import DType, Task
from xlr.run.context import Context
from xlr.run.files import write_text
from xlr.run.manifests import read_manifest
from xlr.settings.config import Config

ANNOTATION = (Stage("generate", 1), Stage("score", 1), Stage("pair", 1))
BY_TRANSLATION = (Stage("generate", 1), Stage("translate", 1), Stage("pair", 1))


class StoppedError(Exception):
    """The pool ended a stage early, as a kill would."""


@dataclass
class LocalPool:
    """A pool with one worker in this process. It has the conditions of the real pool on a machine without GPUs."""

    config: Config
    fail_after: int = 10**9
    computed: int = 0
    workers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pool = Pool(self.config.ray, self.config.model, self.config.generate)
        self._pool._vllm = False  # as if it had been started
        self._worker = Worker(None, self.config.model.dtype, self.config.model.attn_implementation)

    def precision(self, dtype: DType) -> str:
        return self._pool.precision(dtype)

    on_gpus = False

    def conditions(self, task: Task) -> dict[str, str | None]:
        return self._pool.conditions(task)

    def map(self, tasks: Iterable[tuple[Any, Task]]) -> Iterator[tuple[Any, Any]]:
        for key, task in tasks:
            if self.computed == self.fail_after:
                raise StoppedError
            self.computed += 1
            yield key, self._worker.compute(task)

    def close(self) -> None:
        """Nothing to end."""


def opened(config: Config, run: Path, fail_after: int = 10**9) -> Context:
    """A context whose workers are in this process."""
    context = Context(config.model_copy(update={"run_dir": str(run)}))
    context.__dict__["pool"] = LocalPool(context.config, fail_after)
    return context


def made(config: Config, run: Path) -> Context:
    """A run with everything up to its pairs."""
    context = opened(config, run)
    context.run.create()
    write_text(run / "config.yaml", configfile.dump(context.config))
    for stage in BY_TRANSLATION if config.pair.by == "translations" else ANNOTATION:
        if stage.artifact(context).manifest() is None:
            stage.module.make(context, stage.iteration)
            context = opened(config, run)
    return context


def with_settings(config: Config, **sections: Any) -> Config:
    tree = config.model_dump(mode="json")
    for name, value in sections.items():
        tree[name] = {**tree[name], **value} if isinstance(value, dict) else value
    return Config.model_validate(tree)


def digests(context: Context) -> dict[str, str]:
    by_translation = context.config.pair.by == "translations"
    stages = BY_TRANSLATION if by_translation else ANNOTATION
    found = {str(stage): read_manifest(stage.artifact(context).folder) for stage in stages}
    return {name: manifest["digest"] for name, manifest in found.items() if manifest}


def inodes(run: Path, pattern: str) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_ino for path in run.glob(pattern)}

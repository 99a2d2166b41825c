"""Writes numbers to TensorBoard, wandb and mlflow."""

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from xlr.errors import UserError


class Tracker(Protocol):
    """A run in one tracker. Its id is kept in `folder`, so that a later process continues the same run.

    Steps from `first_step` on will be written again. With `anew`, a new run begins.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], first_step: int, anew: bool): ...

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step."""

    def close(self) -> None:
        """End the run."""


def publish(
    folder: Path, report_to: Sequence[str], name: str, settings: Mapping[str, Any], rows: Mapping[int, dict[str, float]]
) -> None:
    """Write all numbers to the trackers, replacing those written for this folder before.

    Args:
        folder: folder of TensorBoard's files and of the ids of the other trackers' runs.
        rows: step -> metric -> value.

    Raises:
        UserError: a tracker is not installed, or refuses.
    """
    for tracker in report_to:
        run = TRACKERS[tracker](folder, name, settings, 0, anew=False)
        for step in sorted(rows):
            run.write(step, rows[step])
        run.close()


class _TensorBoard:
    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], first_step: int, anew: bool):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Project, key and mode come from wandb's environment variables. A resumed training continues its run."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], first_step: int, anew: bool):
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("wandb") from error
        run_id = _kept(folder / "wandb.id", lambda: secrets.token_hex(4), anew)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "xlr"),
                name=name,
                id=run_id,
                resume="allow" if first_step else None,  # without resume, the run replaces the one with the same id
                config=dict(settings),
                dir=str(folder),
            )
        except wandb.errors.Error as error:
            raise UserError(f"wandb: {error}; log in with `wandb login`, or set WANDB_MODE=offline") from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """The server comes from MLFLOW_TRACKING_URI, the experiment from MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], first_step: int, anew: bool):
        try:
            import mlflow
        except ImportError as error:
            raise _not_installed("mlflow") from error
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "xlr")
        try:
            self._client = mlflow.MlflowClient()
            experiment = self._client.get_experiment_by_name(title)
            experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(title)
            self._run_id = _kept(
                folder / "mlflow.id",
                lambda: self._client.create_run(experiment_id, run_name=name).info.run_id,
                anew,
            )
            for key, value in settings.items():
                self._client.log_param(self._run_id, key, value)
            self._held = self._history()
        except mlflow.exceptions.MlflowException as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"mlflow: {mlflow.get_tracking_uri()} refuses ({reason}); set MLFLOW_TRACKING_URI, or remove "
                f"{folder / 'mlflow.id'} to start a new run"
            ) from error

    def _history(self) -> set[tuple[str, int, float]]:
        """The metrics that the run already holds: mlflow would show values that are written again twice."""
        keys = self._client.get_run(self._run_id).data.metrics
        metrics = (metric for key in keys for metric in self._client.get_metric_history(self._run_id, key))
        return {(metric.key, metric.step, metric.value) for metric in metrics}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())  # if a step has two values, mlflow shows the later one
        missing = [
            Metric(key, value, now, step) for key, value in values.items() if (key, step, value) not in self._held
        ]
        self._client.log_batch(self._run_id, missing)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _kept(file: Path, new: Callable[[], str], anew: bool) -> str:
    """A tracker's run id: created at the first start, then read from its file."""
    if anew or not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(new(), encoding="utf-8")
    return file.read_text(encoding="utf-8")


def _not_installed(name: str) -> UserError:
    return UserError(f'report_to: {name} is not installed; run `pip install ".[track]"`, or leave {name} out')


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow}

"""Where training metrics go: always metrics.jsonl, and on request TensorBoard, wandb and mlflow."""

import contextlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from xlr.errors import UserError


class _Tracker(Protocol):
    def write(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class MetricsLog:
    """One line a step in `metrics.jsonl`, and the same numbers to the trackers.

    A resumed run continues: `rows` holds the lines it keeps, those that it will write again are dropped.

    Args:
        folder: of the iteration.
        report_to: trackers by name.
        name: how trackers call the run.
        settings: what trackers show as its parameters.
        steps_done: how many steps the run has behind it.

    Raises:
        UserError: a tracker is not installed.
    """

    def __init__(self, folder: Path, report_to: Sequence[str], name: str, settings: Mapping[str, Any], steps_done: int):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        self.rows = whole_rows(path, steps_done)
        self._trackers = [_TRACKERS[tracker](folder, name, settings, steps_done) for tracker in report_to]
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(json.dumps(row) + "\n" for row in self.rows)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one optimizer step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, values)

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def whole_rows(path: Path, steps_done: int | None = None) -> list[dict[str, Any]]:
    """The lines of finished steps, by default of all; a crash may have torn the last one."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[:steps_done]:
            rows.append(json.loads(line))
    return rows


class _TensorBoard:
    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], steps_done: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=steps_done + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Project, key and mode come from wandb's own environment variables; a resumed training continues its run."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], steps_done: int):
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("wandb") from error
        project = os.environ.get("WANDB_PROJECT", "xlr")
        run_id = _kept(folder / "wandb.id", lambda: secrets.token_hex(4), steps_done)
        self._run = wandb.init(
            project=project, name=name, id=run_id, resume="allow", config=dict(settings), dir=str(folder)
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """The server comes from MLFLOW_TRACKING_URI, the experiment from MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], steps_done: int):
        try:
            import mlflow
        except ImportError as error:
            raise _not_installed("mlflow") from error
        self._client = mlflow.MlflowClient()
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "xlr")
        experiment = self._client.get_experiment_by_name(title)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(title)
        self._run_id = _kept(
            folder / "mlflow.id", lambda: self._client.create_run(experiment_id, run_name=name).info.run_id, steps_done
        )
        if not steps_done:
            for key, value in settings.items():
                self._client.log_param(self._run_id, key, value)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        self._client.log_batch(self._run_id, [Metric(key, value, 0, step) for key, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _kept(file: Path, new: Any, steps_done: int) -> str:
    """A tracker's run id: made at the first start, read again by a resumed one."""
    if not steps_done or not file.is_file():
        file.write_text(new(), encoding="utf-8")
    return file.read_text(encoding="utf-8")


def _not_installed(name: str) -> UserError:
    return UserError(f'report_to: {name} is not installed; run `pip install "xlr[track]"`, or leave {name} out')


_TRACKERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow}

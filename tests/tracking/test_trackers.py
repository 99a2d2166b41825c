"""Metrics are written to metrics.jsonl and every tracker, and a resumed run continues."""

import json
from pathlib import Path

import pytest

from tests.conftest import required
from xlr.errors import UserError
from xlr.tracking.metricslog import MetricsLog


def log(folder: Path, report_to: list[str], steps_done: int = 0) -> MetricsLog:
    return MetricsLog(folder, report_to, "run align", {"train.beta": 0.1}, steps_done)


def test_a_resumed_run_drops_unfinished_steps_and_an_incomplete_line(tmp_path: Path) -> None:
    first = log(tmp_path, [])
    for step in (1, 2, 3):
        first.write(step, {"loss": 1 / 3 / step})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    again = log(tmp_path, [], steps_done=3)
    assert [row["step"] for row in again.rows] == [1, 2, 3]
    assert again.rows[1]["loss"] == 1 / 6
    again.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    resumed = log(tmp_path, [], steps_done=2)
    resumed.write(3, {"loss": 9.0})
    resumed.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1 / 3), (2, 1 / 6), (3, 9.0)]


def test_damaged_metrics_are_refused_and_missing_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = log(tmp_path, [])
    first.write(1, {"loss": 1.0})
    first.close()
    log(tmp_path, [], steps_done=3).close()
    assert "lacks 2 steps; the training curves have a gap" in capsys.readouterr().out
    for text in ("x", "[]", '{"step": 1}', '{"step": null}', "[" * 5000):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{text}\n{{"step": 2}}\n')
        with pytest.raises(UserError, match=r"metrics\.jsonl:2: damaged .*remove the line"):
            log(tmp_path, [], steps_done=1)


def test_tensorboard_shows_every_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        written = log(tmp_path, ["tensorboard"], done)
        for step in steps:
            written.write(step, {"rewards/margins": float(step)})
        written.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("rewards/margins")] == [1, 2, 3, 4]


def test_mlflow_gets_every_step_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = required("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for done, steps in ((0, (1, 2)), (2, (3,))):
        written = log(tmp_path, ["mlflow"], done)
        for step in steps:
            written.write(step, {"loss": float(step), "lang/en/loss": 0.5})
        written.close()
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("xlr")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.beta": "0.1"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_wandb_gets_every_step_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    required("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    written = log(tmp_path, ["wandb"])
    written.write(1, {"loss": 1.0})
    written.close()
    (offline,) = (tmp_path / "wandb").glob("offline-run-*")
    run_id = (tmp_path / "wandb.id").read_text()
    assert offline.name.endswith(run_id)
    assert (offline / f"run-{run_id}.wandb").stat().st_size > 0


def test_a_tracker_that_is_not_installed_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r'report_to: wandb is not installed; run `pip install "\.\[track\]"`'):
        log(tmp_path, ["wandb"])

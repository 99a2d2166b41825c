"""The numbers of the report in real trackers: complete, and each only once however often they are sent."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import assert_refused, required
from tests.waiting import wait_until
from xlr.configfile import load
from xlr.findings import publish as figures
from xlr.run.context import Context
from xlr.run.files import write_json

Found = dict[str, Any]
NAME = "eval/es/win_rate"


def model(reward: float, win_rate: float | None = None) -> Found:
    """An entry of report.json for a model that is evaluated and, with a win rate, judged."""
    own = {"rows": 2, "reward_mean": reward, "in_language": 0.5, "flaws": {"truncated": 1}}
    judgements = win_rate and {
        "model": "pi",
        "baseline": "pi0",
        "win_rate": win_rate,
        "position_bias": {"agreement": 75.0},
        "languages": {lang: {"win_rate": win_rate, "win_rate_interval": [win_rate - 5, 90]} for lang in ("en", "es")},
        "average": {"win_rate": win_rate},
    }
    preferences = {"en": {"multilingual": {"pairs": 16, "accuracy": 0.75, "margin": 1.5}}}
    evaluation = {"iteration": 0, "languages": {"en": own, "es": own | {"reward_mean": 3.0}}, "dropped": {}}
    return {"evaluation": evaluation | {"preferences": preferences}, "judgements": judgements}


@pytest.fixture
def context(tiny_tree: dict[str, Any], write_config: Any) -> Context:
    return Context(load(write_config(tiny_tree)))


def report(context: Context, **iterations: Found) -> None:
    found = {number.removeprefix("iteration"): entry for number, entry in iterations.items()}
    write_json(
        context.run.path / "report.json",
        {"evaluated": ["en", "es"], "settings": {"train.beta": 0.1}, "iterations": found},
    )


def test_every_number_has_a_flat_name() -> None:
    found = dict(figures.flatten(model(1.0, 60.0), ["en", "es"]))
    assert (
        found.items()
        >= {
            "eval/en/reward_mean": 1.0,
            "eval/es/reward_mean": 3.0,
            "eval/average/reward_mean": 2.0,
            "eval/es/in_language": 0.5,
            "eval/es/flaws/truncated": 1.0,
            "eval/preferences/en/multilingual/accuracy": 0.75,
            "eval/es/win_rate": 60.0,
            "eval/es/win_rate_interval/low": 55.0,
            "eval/es/win_rate_interval/high": 90.0,
            "eval/average/win_rate": 60.0,
            "eval/all/win_rate": 60.0,
            "eval/all/position_bias/agreement": 75.0,
        }.items()
    )
    assert not dict(figures.flatten({"evaluation": None, "judgements": None}, ["en"]))
    one = {"evaluation": None, "judgements": {"win_rate": 60.0, "position_bias": None}}
    assert dict(figures.flatten(one, ["es"])) == {"eval/es/win_rate": 60.0}


def test_tensorboard_shows_each_number_once(context: Context) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report(context, iteration0=model(1.0), iteration1=model(2.0, 55.0))
    figures.publish(context.run.path, ["tensorboard"])
    report(context, iteration0=model(1.0), iteration1=model(2.5, 60.0), iteration2=model(3.0), rival=model(0.5, 40.0))
    for _ in range(2):
        figures.publish(context.run.path, ["tensorboard"])
    events = EventAccumulator(str(context.run.path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/en/reward_mean")] == [(0, 1.0), (1, 2.5), (2, 3.0)]
    assert [(event.step, event.value) for event in events.Scalars(NAME)] == [(1, 60.0)]
    rival = EventAccumulator(str(context.run.path / "models" / "rival" / "tensorboard")).Reload()
    assert [event.value for event in rival.Scalars(NAME)] == [40.0]


def test_mlflow_holds_each_number_once(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = required("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    report(context, iteration0=model(1.0), iteration1=model(2.0))
    figures.publish(context.run.path, ["mlflow"])
    report(context, iteration0=model(1.0), iteration1=model(2.0, 60.0), rival=model(0.5, 40.0))
    for _ in range(2):
        figures.publish(context.run.path, ["mlflow"])
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("xlr").experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert set(by_name) == {"run report", "run rival"}
    own = by_name["run report"]
    history = client.get_metric_history(own.info.run_id, "eval/en/reward_mean")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 2.0)]
    assert own.data.metrics[NAME] == 60.0
    assert own.data.params["train.beta"] == "0.1"
    assert own.info.status == "FINISHED"
    assert by_name["run rival"].data.metrics[NAME] == 40.0


def test_a_run_unknown_to_mlflow_is_refused_with_the_remedy(
    context: Context, tmp_path: Path, cli_here: Any, write_config: Any, tiny_tree: dict[str, Any]
) -> None:
    required("mlflow")
    context.run.path.mkdir()
    (context.run.path / "mlflow.id").write_text("0" * 32)
    store = {"MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}
    result = cli_here("report", write_config(tiny_tree), "--to", "mlflow", **store)
    assert_refused(result, f"remove {context.run.path / 'mlflow.id'} to start a new run")


def test_wandb_replaces_the_run_with_all_numbers_each_time(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    required("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    report(context, iteration0=model(1.0), iteration1=model(2.0, 60.0))
    for _ in range(2):
        figures.publish(context.run.path, ["wandb"])
    own = context.run.path
    offline = list((own / "wandb").glob("offline-run-*/*.wandb"))
    assert {file.name for file in offline} == {f"run-{(own / 'wandb.id').read_text()}.wandb"}
    for file in offline:  # wandb's own process may still write it
        wait_until(lambda file=file: rows_of(file) == [(0, 1.0, None), (1, 2.0, 60.0)], f"the rows of {file}", 60)  # type: ignore[misc]


def rows_of(file: Path) -> list[tuple[int, float, float | None]]:
    """Step, reward and win rate of each history row in a file of wandb."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for data in records(file.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append((row["_step"], row["eval/en/reward_mean"], row.get(NAME)))
    return rows


def records(data: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format: each piece has a header of checksum, length and kind; blocks are 32 KiB."""
    offset, whole, last = 7, b"", {1, 4}
    while offset + 7 <= len(data):
        if (room := -offset % 32768) and room < 7:
            offset += room
            continue
        length, kind = struct.unpack_from("<HB", data, offset + 4)
        whole += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in last:
            yield whole
            whole = b""


def test_an_unknown_tracker_is_refused_before_the_report_is_made(
    cli_here: Any, write_config: Any, tiny_tree: dict[str, Any], tmp_path: Path
) -> None:
    result = cli_here("report", write_config(tiny_tree), "--to", "mlflow,neptune")
    assert_refused(result, "--to neptune: no such tracker; there are tensorboard, wandb, mlflow")
    assert not (tmp_path / "run").exists()


def test_wandb_without_a_key_is_refused_with_the_remedy(
    cli: Any, write_config: Any, tiny_tree: dict[str, Any], context: Context, tmp_path: Path
) -> None:
    required("wandb")
    context.run.path.mkdir()
    nobody = {"HOME": str(tmp_path), "WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    result = cli("report", write_config(tiny_tree), "--to", "wandb", **nobody)
    assert_refused(result, "log in with `wandb login`, or set WANDB_MODE=offline")

"""`xlr plan`: what a run takes, from the models' configuration and the real prompts."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Cli, assert_refused

Write = Callable[[dict[str, Any]], Path]


@pytest.fixture
def large(tiny_models: dict[str, Path], tiny_tree: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run of Llama3-8B's shape: its config.json without weights, and a tiny tokenizer."""
    for name in ("initial", "aligned"):
        folder = tmp_path / name
        folder.mkdir()
        for file in tiny_models[name].iterdir():
            if "token" in file.name or file.suffix == ".jinja":
                (folder / file.name).write_bytes(file.read_bytes())
        config = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "vocab_size": 128256,
            "tie_word_embeddings": False,
        }
        (folder / "config.json").write_text(json.dumps(config))
        tiny_tree["model"][name] = str(folder)
    tiny_tree["generate"] = {"num_samples": 10, "max_new_tokens": 2400, "backend": "vllm", "max_num_seqs": 1024}
    tiny_tree["score"] = {}
    tiny_tree["train"] = {"gradient_checkpointing": "selective", "save_steps": 0}
    return tiny_tree


def planned(cli: Cli, config: Path, *arguments: str) -> dict[str, Any]:
    found = cli("plan", config, "--json", *arguments)
    assert found.returncode == 0, found.stderr
    plan: dict[str, Any] = json.loads(found.stdout)
    return plan


def test_llama3_8b_on_8_h100_takes_what_was_estimated_part_by_part(
    cli: Cli, large: dict[str, Any], write_config: Write
) -> None:
    plan = planned(cli, write_config(large), "--on", "h100:8")
    assert plan["parameters"] == pytest.approx(8.03e9, rel=1e-3)
    by_name = {own["stage"]: own for own in plan["stages"]}
    assert sum(by_name["train 1"]["memory"].values()) == pytest.approx(61e9, rel=0.15)  # tests/maths/test_memory.py
    assert by_name["train 1"]["scratch"] == pytest.approx(96e9, rel=0.01)  # a checkpoint
    assert by_name["train 1"]["disk"] == pytest.approx(16e9, rel=0.01)
    assert by_name["score 1"]["processors"] == "8 h100"
    assert plan["problems"] == []
    assert plan["totals"]["disk_peak"] > plan["totals"]["disk_end"]
    assert plan["totals"]["low"] < plan["totals"]["seconds"] < plan["totals"]["high"]
    assert plan["unit"] == "GPU-hours"
    assert plan["response_lengths"] == "assumed: 400 in English"


def test_what_does_not_fit_comes_with_a_setting_that_does(cli: Cli, large: dict[str, Any], write_config: Write) -> None:
    config = write_config(large)
    plan = planned(cli, config, "--on", "a100-40:8")
    (problem,) = plan["problems"]
    assert problem.startswith("train 1: needs ")
    overrides = problem.partition("it fits with ")[2]
    assert planned(cli, config, *overrides.split(), "--on", "a100-40:8")["problems"] == []
    (problem,) = planned(cli, config, "--on", "l40s:1", "train.ds_config=zero2")["problems"]
    assert problem.endswith("train.ds_config=zero3_offload_optimizer and 128 GB of each node's memory")
    small = ("slurm.gpus=8", "slurm.hardware={memory_gb: 12, tflops: 100, bandwidth_gb: 500}")
    found = planned(cli, config, *small)["problems"]
    generate, score, train = (
        next(own for own in found if own.startswith(stage)) for stage in ("generate 1", "score 1", "train 1")
    )
    assert "it fits with generate.tensor_parallel_size=2" in generate
    assert score.endswith("no setting of xlr makes it fit: take GPUs with more memory, or more of them")
    assert "it fits with train.gradient_checkpointing=true" in train


@pytest.mark.parametrize("on", ["a100-40:8", "l40s:8"])
def test_the_written_configuration_fits_and_is_no_slower(
    cli: Cli, large: dict[str, Any], write_config: Write, tmp_path: Path, on: str
) -> None:
    config, written = write_config(large), tmp_path / "planned.yaml"
    before = planned(cli, config, "--on", on, "--write", str(written))
    assert before["settings"]
    after = planned(cli, written, "--on", on)
    assert (after["problems"], after["settings"]) == ([], {})
    assert before["problems"]
    limit = yaml.safe_load(written.read_text())["slurm"]["jobs"]["train"]["time"]
    assert limit.endswith(":00")
    assert_refused(cli("plan", config, "--on", on, "--write", written), "exists already; choose another name")


def test_a_run_keeps_its_plan_and_its_status_shows_it(
    cli: Cli, large: dict[str, Any], write_config: Write, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    large["slurm"] = {"gpus": 8, "hardware": "h100"}
    planned(cli, write_config(large))
    assert not run.exists()
    run.mkdir()
    (run / "config.yaml").write_bytes(cli("config", write_config(large)).stdout.encode())
    kept = planned(cli, run)
    planned(cli, run, "--on", "l40s:8")  # another plan, which is not the run's
    assert json.loads((run / "plan.json").read_text()) == {key: kept[key] for key in kept if key != "settings"}
    shown = cli("status", run)
    assert shown.returncode == 0, shown.stderr
    assert "planned for what is left: " in shown.stdout
    (run / "plan.json").write_text("{}")
    assert_refused(cli("status", run), "plan.json")


def test_machines_prices_and_limits_come_from_the_jobs(
    cli: Cli, large: dict[str, Any], write_config: Write, tmp_path: Path
) -> None:
    site = tmp_path / "site.yaml"
    profile = {"hardware": {"profile": "h100", "price": 2.0, "currency": "EUR"}, "gpus": 8, "time": "0:20:00"}
    site.write_text(yaml.safe_dump(profile | {"jobs": {"annotate": {"nodes": 2}, "train": {"time": "0:05:00"}}}))
    plan = planned(cli, write_config(large), "--site", str(site))
    by_name = {own["stage"]: own for own in plan["stages"]}
    assert (by_name["score 1"]["processors"], by_name["train 1"]["processors"]) == ("16 h100", "8 h100")
    hours = plan["totals"]["processor_hours"]
    assert (plan["totals"]["price"], plan["currency"]) == (pytest.approx(2 * hours), "EUR")
    (problem,) = plan["problems"]
    assert problem.startswith("train 1: its job ends after 5 minutes, but starting and the smallest part that is kept")
    queued = cli("submit", write_config(large), "--site", site, "--dry-run")
    assert f"warning: {problem}" in queued.stdout
    shown = cli("plan", write_config(large), "--site", site, COLUMNS="160")
    assert shown.returncode == 0, shown.stderr
    assert "GPU-hours; queues come on top." in shown.stdout
    assert "EUR." in shown.stdout


def test_automatic_limits_are_those_of_the_plan(cli: Cli, large: dict[str, Any], write_config: Write) -> None:
    large["slurm"] = {"gpus": 8, "hardware": "h100", "time": "auto", "jobs": {"evaluate": {"time": "1:00:00"}}}
    plan = planned(cli, write_config(large))
    queued = cli("submit", write_config(large), "--dry-run")
    assert queued.returncode == 0, queued.stderr
    for kind, stages in {"annotate": ("generate 1", "score 1", "pair 1"), "train": ("train 1",)}.items():
        seconds = sum(own["high"] for own in plan["stages"] if own["stage"] in stages)
        halves = math.ceil(1.2 * seconds / 1800)  # half hours
        command = next(line for line in queued.stdout.splitlines() if f"{kind}-1-%j.out" in line)
        assert f"--time={halves // 2}:{halves % 2 * 30:02d}:00 " in command
    assert "--time=1:00:00" in next(line for line in queued.stdout.splitlines() if "evaluate-1-%j.out" in line)
    large["judge"] = {"backend": "transformers", "model": large["model"]["initial"]}
    large["slurm"]["jobs"] = {}
    refused = cli("submit", write_config(large), "--dry-run")
    assert_refused(refused, "slurm.jobs.evaluate.time: is auto, but judging cannot be timed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on", "b300"], "'b300': no known hardware; choose one of h100"),
        (["--on", "h100:8:x"], "--on h100:8:x: not KIND[:GPUS[:NODES]], such as h100:8:2"),
        (["--on", "h100:0"], "--on h100:0: not KIND"),
        (["--on", "h100", "prompts.path=/nowhere"], "prompts.path /nowhere: no such file or folder"),
        (["slurm.hardware={price: 2}"], "has a price without a currency"),
    ],
)
def test_bad_input_is_refused(
    cli: Cli, large: dict[str, Any], write_config: Write, arguments: list[str], message: str
) -> None:
    assert_refused(cli("plan", write_config(large), *arguments), message)

"""`xlr plan --probe`: a real small run, and what it changes in the plan."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Cli, assert_refused
from xlr.planning import planfile, probe
from xlr.planning.hardware import PROFILES
from xlr.planning.machines import Machines
from xlr.planning.planfile import Measured, Probe
from xlr.planning.setting import Estimate
from xlr.shipped import RECIPES

H100 = PROFILES["h100"]
OWN: Measured = {"work": 2.0, "fixed": 30.0, "memory": 1}
FOUND: Probe = {"on": "h100", "rate": H100.rate, "stages": {"generate": OWN, "train": OWN}, "responses": {}}


def test_a_probe_counts_on_its_own_hardware_and_for_work_of_the_same_kind() -> None:
    assert probe.of_stage(FOUND, "generate", Machines(H100)) == OWN
    assert probe.of_stage(FOUND, "check", Machines(H100)) == OWN
    assert probe.of_stage(FOUND, "align", Machines(H100)) == OWN
    assert probe.of_stage(FOUND, "score", Machines(H100)) is None
    assert probe.of_stage(FOUND, "generate", Machines(PROFILES["h200"])) is None
    assert probe.of_stage(None, "generate", Machines(H100)) is None
    halved: Probe = {**FOUND, "rate": H100.rate / 2}  # as if the plan took the machine for half as fast then
    assert probe.of_stage(halved, "generate", Machines(H100)) == {**OWN, "work": 4.0}


def test_each_kind_of_work_in_a_stage_is_corrected_on_its_own() -> None:
    """An evaluation samples answers and scores pairs. What it took beside its work is its own."""
    rates = {"generate": 3.0, "score": 0.5, "evaluate": 7.0}
    stages: dict[str, Measured] = {name: {"work": work, "fixed": 4.0, "memory": 1} for name, work in rates.items()}
    found: Probe = {**FOUND, "stages": stages}
    evaluated = Estimate(seconds=30.0, parts={"generate": 10.0, "score": 20.0})
    assert probe.seconds(found, "evaluate", evaluated, Machines(H100)) == 10 * 3.0 + 20 * 0.5 + 4
    assert probe.seconds(found, "score", Estimate(seconds=30.0), Machines(H100)) == 30 * 0.5 + 4
    unscored: Probe = {**found, "stages": {"evaluate": stages["evaluate"]}}
    assert probe.seconds(unscored, "evaluate", evaluated, Machines(H100)) == 30 * 7.0 + 4
    assert probe.seconds(found, "train", Estimate(seconds=30.0), Machines(H100)) is None


@pytest.fixture
def config(tiny_tree: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "probed.yaml"
    path.write_text(yaml.safe_dump(tiny_tree | {"iterations": 2}), encoding="utf-8")
    return path


def test_a_probe_corrects_the_plan_and_is_kept(config: Path, tmp_path: Path, cli: Cli) -> None:
    assumed = json.loads(cli("plan", config, "--json").stdout)
    assert assumed["probe"] is None
    assert not (tmp_path / "run").exists()
    result = cli("plan", config, "--probe", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert {"generate", "score", "train"} <= found["probe"]["stages"].keys()
    assert all(own["work"] > 0 and own["fixed"] >= 0 for own in found["probe"]["stages"].values())
    assert found["response_lengths"] == "as in the probe"
    assert assumed["response_lengths"].startswith("assumed")
    assert planfile.last_probe(tmp_path / "run") == found["probe"]
    assert not (tmp_path / "run" / "probe").exists()
    later = json.loads(cli("plan", config, "--json").stdout)
    assert later["probe"] == found["probe"]
    for first, again in zip(found["stages"], later["stages"], strict=True):
        assert again["seconds"] == pytest.approx(first["seconds"], rel=0.2)  # fixed seconds, above all
        if first["stage"].split()[0] in found["probe"]["stages"]:
            assert first["high"] == pytest.approx(1.15 * first["seconds"])
    unprobed = {own["stage"]: own["seconds"] for own in assumed["stages"]}
    assert any(own["seconds"] != pytest.approx(unprobed[own["stage"]], rel=0.01) for own in found["stages"])


def test_the_alignment_is_probed(config: Path, tmp_path: Path, cli: Cli) -> None:
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    del tree["model"]["aligned"]
    tree["align"] = tree["train"] | {"preferences": str(RECIPES / "quickstart" / "preferences.jsonl")}
    tree["languages"], tree["train"]["replay_english"] = ["es"], 0.5
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    result = cli("plan", config, "--probe", "--json")
    assert result.returncode == 0, result.stderr
    assert {"align", "train"} <= json.loads(result.stdout)["probe"]["stages"].keys()


def test_what_cannot_be_probed_is_refused(config: Path, cli_here: Cli) -> None:
    assert_refused(cli_here("plan", config, "--probe", "--on", "h100"), "--probe: runs on this machine; remove --on")
    graded = ("score.reward=judge", "judge.model=someone")
    assert_refused(cli_here("plan", config, "--probe", *graded), "--probe: the judge of score.reward cannot be timed")

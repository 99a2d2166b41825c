"""What a user looks at: versions, recipes, runs and their state."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import xlr
from tests import inprocess
from tests.conftest import INTERRUPTIBLE, Cli, assert_refused
from tests.waiting import wait_until
from xlr import configfile
from xlr.pipeline import Stage
from xlr.settings.config import Config
from xlr.shipped import purpose, recipes


def test_the_version_and_the_recipes_are_printed(cli_here: Cli) -> None:
    assert cli_here("--version").stdout == f"xlr {xlr.__version__}\n"
    printed = cli_here("recipes").stdout.splitlines()
    assert printed == [f"{name}: {purpose(name)}" for name in recipes()]
    assert "llama3-8b: The paper's run: five languages, 3,000 prompts each, ten samples, two iterations" in printed
    assert all(len(line) < 140 for line in printed)


@pytest.mark.parametrize("argument", ["--train.beta=0.2", "--languages.x", "--score.reward"])
def test_an_override_with_dashes_is_explained(argument: str, cli_here: Cli) -> None:
    refused = cli_here("run", "x.yaml", argument)
    assert_refused(refused, f"{argument}: a setting is written without dashes: {argument[2:].split('=')[0]}=VALUE")


def test_runs_are_listed_with_their_state(tiny_tree: dict[str, Any], tmp_path: Path, cli: Cli) -> None:
    """Also those in folders inside, damaged ones with the reason."""
    folder = tmp_path / "runs"
    for name in ("one", "group/two"):
        (folder / name).mkdir(parents=True)
        text = configfile.dump(Config.model_validate(tiny_tree))
        (folder / name / "config.yaml").write_text(text, encoding="utf-8")
    context = inprocess.opened(configfile.load(folder / "one"), folder / "one")
    Stage("generate", 1).module.make(context, 1)
    (folder / "bad").mkdir()
    (folder / "bad" / "config.yaml").write_text("languages: 3\n", encoding="utf-8")
    os.utime(folder / "group" / "two", (time.time() + 60, time.time() + 60))
    lines = [line for line in cli("runs", folder, COLUMNS="200").stdout.splitlines() if "│" in line]
    state = {line.split("│")[1].strip(): line for line in lines}
    assert next(iter(state)) == "group/two"
    assert "1 of 6 done" in state["one"]
    assert "0 of 6 done" in state["group/two"]
    assert "not valid; xlr status says why" in state["bad"]
    assert_refused(cli("runs", tmp_path / "none"), "no such folder")


def test_status_is_watched_until_it_is_interrupted(tiny_tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_tree), encoding="utf-8")
    command = [*INTERRUPTIBLE, sys.executable, "-m", "xlr", "status", str(tmp_path / "run.yaml"), "--watch"]
    with (tmp_path / "out").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (tmp_path / "out").read_text(encoding="utf-8").count("generate 1") > 1, "a second look")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0

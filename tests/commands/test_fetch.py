"""`xlr fetch` from a hub on loopback: what is downloaded, once, at which commit, and what it says without network."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, assert_refused
from tests.hubserver import FIRST, SECOND, HubServer, serving
from tests.waiting import wait_until

WriteConfig = Callable[[dict[str, Any]], Path]
PAIRS = [
    {
        "prompt": f"Question {number}?",
        "chosen": [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": f"A good answer {number}."},
        ],
        "rejected": [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": f"A bad answer {number}."},
        ],
        "score_chosen": 7.5,
    }
    for number in range(3)
]
CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train_prefs, path: data/train_prefs.jsonl}
  - {split: test_prefs, path: data/test_prefs.jsonl}
---
"""


def write_pairs(path: Path, pairs: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


@pytest.fixture
def hub(tiny_models: dict[str, Path], tmp_path: Path) -> Iterator[HubServer]:
    """A hub with the model lab/tiny and the dataset lab/pairs, in the form of UltraFeedback binarized."""
    root = tmp_path / "served"
    shutil.copytree(tiny_models["initial"], root / "lab" / "tiny")
    (root / "lab" / "tiny" / "pytorch_model.bin").write_bytes(b"pickled")
    (root / "lab" / "tiny" / "modeling.py").write_text("raise SystemExit")
    data = root / "datasets" / "lab" / "pairs"
    write_pairs(data / "data" / "train_prefs.jsonl", PAIRS)
    write_pairs(data / "data" / "test_prefs.jsonl", PAIRS[:1])
    (data / "README.md").write_text(CARD)
    (data / "pairs.py").write_text("raise SystemExit")
    with serving(root) as server:
        yield server


@pytest.fixture
def config(tiny_tree: dict[str, Any], write_config: WriteConfig) -> Path:
    preferences = {"path": "lab/pairs", "split": "train_prefs"}
    return write_config(tiny_tree | {"model": {"initial": "lab/tiny"}, "align": {"preferences": preferences}})


def test_a_run_on_a_node_without_network_uses_what_was_fetched(
    hub: HubServer, config: Path, cli: Cli, tmp_path: Path
) -> None:
    online = hub.environment(tmp_path / "cache")
    first = cli("fetch", config, **online)
    assert first.returncode == 0, first.stderr
    assert f"lab/tiny at commit {FIRST[:8]}: " in first.stdout
    assert f"datasets/lab/pairs at commit {FIRST[:8]}: " in first.stdout
    assert first.stdout.count("not in the cache yet") == 2
    sent = [Path(path).name for path in hub.downloaded]
    assert {"config.json", "model.safetensors", "tokenizer.json", "train_prefs.jsonl", "README.md"} <= set(sent)
    assert not {"pytorch_model.bin", "modeling.py", "pairs.py"} & set(sent)
    assert len(sent) == len(set(hub.downloaded))

    hub.commit = SECOND  # a new commit does not change the run
    offline = online | {"HF_HUB_OFFLINE": "1"}
    shown = cli("data", config, **offline)
    assert shown.returncode == 0, shown.stderr
    assert "align.preferences, English, the first row as the model reads it:" in shown.stdout
    assert "Question 0?" in shown.stdout
    commits = json.loads((tmp_path / "run" / "hub.json").read_text())["commits"]
    assert commits == {"lab/tiny": FIRST, "datasets/lab/pairs": FIRST}


def test_a_revision_is_fetched_and_recorded_with_its_commit(
    hub: HubServer, config: Path, cli: Cli, tmp_path: Path
) -> None:
    """Branches and tags; the main branch is not downloaded, and a moved tag does not change the run."""
    environment, lab, data = hub.environment(tmp_path / "cache"), hub.root / "lab", hub.root / "datasets" / "lab"
    shutil.copytree(lab / "tiny", lab / "tiny@v1.0")
    (lab / "tiny@v1.0" / "generation_config.json").write_text('{"tagged": 1}')
    shutil.copytree(data / "pairs", data / "pairs@new%2Frows")
    write_pairs(data / "pairs@new%2Frows" / "data" / "train_prefs.jsonl", PAIRS[1:])
    names = ("model.initial=lab/tiny@v1.0", "align.preferences.path=lab/pairs@new/rows")
    fetched = cli("fetch", config, *names, **environment)
    assert fetched.returncode == 0, fetched.stderr
    expected = {
        "lab/tiny@v1.0": hub.commit_of("lab/tiny@v1.0"),
        "datasets/lab/pairs@new/rows": hub.commit_of("datasets/lab/pairs@new%2Frows"),
    }
    assert json.loads((tmp_path / "run" / "hub.json").read_text())["commits"] == expected
    assert f"lab/tiny@v1.0 at commit {expected['lab/tiny@v1.0'][:8]}: " in fetched.stdout
    snapshots = tmp_path / "cache" / "hub" / "models--lab--tiny" / "snapshots"
    assert [folder.name for folder in snapshots.iterdir()] == [expected["lab/tiny@v1.0"]]
    assert (snapshots / expected["lab/tiny@v1.0"] / "generation_config.json").read_text() == '{"tagged": 1}'
    hub.commits["lab/tiny@v1.0"] = SECOND
    again = cli("fetch", config, *names, **environment)
    assert "to download: 0 MB" in again.stdout, again.stderr
    shown = cli("data", config, *names, **environment | {"HF_HUB_OFFLINE": "1"})
    assert "Question 1?" in shown.stdout, shown.stderr


def test_data_are_shown_before_anything_is_fetched(hub: HubServer, config: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(hub.root / "lab" / "tiny", hub.root / "lab" / "tiny@v1.0")
    shown = cli("data", config, "model.initial=lab/tiny@v1.0", **hub.environment(tmp_path / "cache"))
    assert "Question 0?" in shown.stdout, shown.stderr
    assert "lab/tiny/model.safetensors" not in hub.downloaded


@pytest.mark.parametrize("revision", ["v2", "3" * 40])
@pytest.mark.parametrize(("key", "kind"), [("model.initial", "model"), ("align.preferences.path", "dataset")])
def test_a_revision_that_does_not_exist_is_refused(
    hub: HubServer, config: Path, cli: Cli, tmp_path: Path, key: str, kind: str, revision: str
) -> None:
    name = {"model": "lab/tiny", "dataset": "lab/pairs"}[kind]
    refused = cli("fetch", config, f"{key}={name}@{revision}", **hub.environment(tmp_path / "cache"))
    assert_refused(refused, f"{name}@{revision}: the hub has no revision {revision} of this {kind}; name a branch, tag")


def test_after_fetch_a_stage_asks_the_hub_for_nothing(hub: HubServer, config: Path, cli: Cli, tmp_path: Path) -> None:
    """Also where it could: the align stage opens the model and the dataset, in its own process and in ranks.

    A job, for which HF_HUB_OFFLINE is set, sends no request at all.
    """
    environment = hub.environment(tmp_path / "cache")
    settings = ("align.ds_config=zero3_cpu", "align.reference_ds_config=reference_cpu", "align.max_steps=1")
    assert cli("fetch", config, *settings, **environment).returncode == 0
    hub.requests.clear()
    aligned = cli("align", config, *settings, **environment)
    assert aligned.returncode == 0, aligned.stderr
    # huggingface_hub itself asks once a day which agents there are, which concerns no repository.
    assert {request for request in hub.requests if "agent-harnesses" not in request} == set()
    hub.requests.clear()

    (weights,) = (tmp_path / "cache").rglob("snapshots/*/model.safetensors")
    weights.unlink()
    lacking = cli("generate", config, *settings, **environment | {"HF_HUB_OFFLINE": "1"})
    assert_refused(lacking, f"lab/tiny at commit {FIRST}: not a folder, and the hub does not give this model (")
    assert "run `xlr fetch` where there is a network" in lacking.stderr
    assert hub.requests == []


def test_an_interrupted_download_is_continued(hub: HubServer, config: Path, cli: Cli, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "cache")
    hub.stalled = "model.safetensors"
    complete = {file.name for file in (hub.root / "lab" / "tiny").iterdir() if file.suffix in (".json", ".jinja")}
    process = subprocess.Popen([sys.executable, "-m", "xlr", "fetch", str(config)], env=os.environ | environment)
    try:
        assert hub.stalls.wait(120)
        snapshot = tmp_path / "cache" / "hub" / "models--lab--tiny" / "snapshots" / FIRST
        wait_until(lambda: complete == {file.name for file in snapshot.glob("*")}, "the other files are complete")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    hub.stalled = ""
    before = list(hub.downloaded)
    assert cli("fetch", config, **environment).returncode == 0
    assert "lab/tiny/model.safetensors" in hub.downloaded[len(before) :]
    assert not set(before) & set(hub.downloaded[len(before) :])
    third = cli("fetch", config, **environment)
    assert third.stdout.count("in the cache already") == 2
    assert "to download: 0 MB" in third.stdout


def test_without_network_the_remedy_is_named(hub: HubServer, config: Path, cli: Cli, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "cache")
    nowhere = cli("fetch", config, **environment | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert_refused(nowhere, "lab/tiny: not a folder, and the hub does not give this model (")
    assert "run `xlr fetch` where there is a network" in nowhere.stderr
    offline = cli("fetch", config, **environment | {"HF_HUB_OFFLINE": "1"})
    assert_refused(offline, "lab/tiny: not a folder, and the hub does not give this model (")
    unknown = cli("fetch", config, "align.preferences.path=lab/other", **environment)
    assert_refused(unknown, "lab/other: not a folder, and the hub does not give this dataset (")


def test_a_run_of_paths_needs_nothing(tiny_tree: dict[str, Any], write_config: WriteConfig, cli_here: Cli) -> None:
    found = cli_here("fetch", write_config(tiny_tree))
    assert (found.returncode, found.stdout.count("nothing of this run is on the hub")) == (0, 1)


def test_the_table_of_difficulties_is_fetched(hub: HubServer, config: Path, cli: Cli, tmp_path: Path) -> None:
    table = hub.root / "datasets" / "tatsu-lab" / "alpaca_eval" / "df_gamed.csv"
    table.parent.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[1] / "golden" / "winrate" / "df_gamed.csv", table)
    found = cli("fetch", config, "judge.difficulty=tatsu-lab/alpaca_eval", **hub.environment(tmp_path / "cache"))
    assert found.returncode == 0, found.stderr
    assert "datasets/tatsu-lab/alpaca_eval: its table of difficulties is in the cache" in found.stdout

"""`xlr push` to a hub on loopback: what arrives, what is asked and refused, and that a killed push can be repeated."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, assert_refused
from tests.hubserver import READER, TOKEN, HubServer, serving
from tests.waiting import wait_until
from xlr import configfile
from xlr.foreign.modelcard import model_card
from xlr.foreign.upload import _WEIGHTS
from xlr.pipeline import Stage
from xlr.run import digests
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.digests import file_digest
from xlr.run.files import write_text
from xlr.settings.config import Config
from xlr.terminal.progress import Clock

WriteConfig = Callable[[dict[str, Any]], Path]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as server:
        yield server


@pytest.fixture
def run(tiny_tree: dict[str, Any], tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    """A run directory of two iterations, of which the first has a model."""
    context = Context(Config.model_validate(tiny_tree | {"iterations": 2}))
    context.run.create()
    write_text(context.run.path / "config.yaml", configfile.dump(context.config))
    finish(context, tiny_models["aligned"])
    return context.run.path


def finish(context: Context, model: Path) -> None:
    """Give the first iteration this model, as the train stage would."""
    target = Stage("train", 1).artifact(context)
    shutil.rmtree(target.folder, ignore_errors=True)
    shutil.copytree(model, target.folder)
    Artifact(context.run.path, target.folder.with_name("pairs"), "pair", {}, {}).finish(0, {}, Clock())
    card = model_card(1, str(model), ["en", "es"], {"train.beta": 0.1}, {"pairs": 2}, {"loss": 0.5})
    (target.folder / "README.md").write_text(card, encoding="utf-8")
    target.finish(0, {}, Clock())


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_is_pushed_is_what_fetch_gives_back(
    hub: HubServer, run: Path, cli: Cli, tmp_path: Path, tiny_tree: dict[str, Any], write_config: WriteConfig
) -> None:
    environment = hub.environment(tmp_path / "cache", TOKEN)
    pushed = cli("push", run, "lab/mine", "--yes", **environment)
    assert pushed.returncode == 0, pushed.stderr
    model = contents(run / "iter1" / "model")
    assert f"iteration 1 of {run}: {len(model)} files, " in pushed.stdout
    assert "to lab/mine, branch main: a private repository, new" in pushed.stdout
    assert pushed.stdout.splitlines()[-1] == f"{hub.url}/lab/mine/commit/{hub.commits['lab/mine']}"
    assert contents(hub.root / "lab" / "mine") == model
    assert "lab/mine" not in hub.public
    card = model["README.md"].decode()
    assert str(tmp_path) not in card
    assert "# aligned, iteration 1" in card

    config = write_config(tiny_tree | {"run_dir": str(tmp_path / "next"), "model": {"initial": "lab/mine"}})
    fetched = cli("fetch", config, f"model.aligned={tiny_tree['model']['aligned']}", **environment)
    assert fetched.returncode == 0, fetched.stderr
    commit = json.loads((tmp_path / "next" / "hub.json").read_text())["commits"]["lab/mine"]
    assert commit == hub.commits["lab/mine"]
    cached = contents(tmp_path / "cache" / "hub" / "models--lab--mine" / "snapshots" / commit)
    assert cached == {name: content for name, content in model.items() if name != "README.md"}


def test_a_branch_is_made_and_the_main_one_stays(hub: HubServer, run: Path, cli: Cli, tmp_path: Path) -> None:
    """The branch begins as the main one. Weights of another division that are there would be read with the new ones."""
    old = {"README.md": b"old", "model.safetensors.index.json": b"{}", "model-00001-of-00002.safetensors": b"old"}
    other = {"original.safetensors": b"kept", "notes.txt": b"kept"}
    (hub.root / "lab" / "mine").mkdir(parents=True)
    for name, content in (old | other).items():
        (hub.root / "lab" / "mine" / name).write_bytes(content)
    hub.public.add("lab/mine")
    pushed = cli(
        "push", run, "lab/mine", "-i", 1, "--revision", "new/try", "-y", **hub.environment(tmp_path / "cache", TOKEN)
    )
    assert pushed.returncode == 0, pushed.stderr
    assert "to lab/mine, branch new/try: a public repository, there already" in pushed.stdout
    assert contents(hub.root / "lab" / "mine") == old | other
    assert contents(hub.root / "lab" / "mine@new%2Ftry") == contents(run / "iter1" / "model") | other


def test_pushing_again_commits_nothing(hub: HubServer, run: Path, cli: Cli, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "cache", TOKEN)
    first = cli("push", run, "lab/mine", "--yes", "--public", **environment)
    again = cli("push", run, "lab/mine", "--yes", **environment)
    assert again.returncode == 0, again.stderr
    assert "a public repository, there already" in again.stdout
    assert first.stdout.splitlines()[-1] == again.stdout.splitlines()[-1]
    assert len([request for request in hub.requests if "/commit/" in request]) == 1


def test_a_killed_push_shows_nothing_and_is_completed(hub: HubServer, run: Path, cli: Cli, tmp_path: Path) -> None:
    environment, model = hub.environment(tmp_path / "cache", TOKEN), run / "iter1" / "model"
    hub.stalled, other = file_digest(model / "model.safetensors"), file_digest(model / "tokenizer.json")
    command = [sys.executable, "-m", "xlr", "push", str(run), "lab/mine", "--yes"]
    process = subprocess.Popen(command, env=os.environ | environment)
    try:
        assert hub.stalls.wait(120)
        wait_until(lambda: hub.received == [other], "the other large file is complete")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert contents(hub.root / "lab" / "mine") == {}
    weights, hub.stalled = hub.stalled, ""
    pushed = cli("push", run, "lab/mine", "--yes", **environment)
    assert pushed.returncode == 0, pushed.stderr
    assert contents(hub.root / "lab" / "mine") == contents(model)
    assert hub.received == [other, weights]
    assert len([request for request in hub.requests if "/commit/" in request]) == 1


def test_nobody_is_pushed_without_being_asked(hub: HubServer, run: Path, cli: Cli, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "cache", TOKEN)
    assert_refused(cli("push", run, "lab/mine", **environment), f"xlr push {run} lab/mine: nobody can be asked here")
    assert not (hub.root / "lab").exists()
    terminal, ours = pty.openpty()
    command = [sys.executable, "-m", "xlr", "push", str(run), "lab/mine"]
    process = subprocess.Popen(command, env=os.environ | environment, stdin=ours, stdout=subprocess.PIPE)
    os.write(terminal, b"n\n")
    output, _ = process.communicate(timeout=120)
    assert b"7 files" in output
    assert process.returncode == 1
    assert not (hub.root / "lab").exists()


@pytest.mark.parametrize(
    ("token", "repository", "message"),
    [
        (None, "lab/mine", "lab/mine: you are not logged in to the hub; run `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "lab/mine", "lab/mine: the hub does not accept your token; run `hf auth login` again"),
        (READER, "lab/mine", "lab/mine: you may not write there ("),
        (TOKEN, "other/mine", "other/mine: you may not write there ("),
        (TOKEN, "mine", "mine: no name of a repository; write owner/name"),
    ],
)
def test_who_may_not_write_is_told_what_to_do(
    hub: HubServer, run: Path, cli: Cli, tmp_path: Path, token: str | None, repository: str, message: str
) -> None:
    refused = cli("push", run, repository, "--yes", **hub.environment(tmp_path / "cache", token))
    assert_refused(refused, message)
    assert "hf_w" not in refused.stdout + refused.stderr
    assert not list(hub.root.iterdir())


def test_without_network_the_remedy_is_named(hub: HubServer, run: Path, cli: Cli, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "cache", TOKEN)
    nowhere = cli("push", run, "lab/mine", "--yes", **environment | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert_refused(nowhere, "push again: complete large files are not sent again")
    offline = cli("push", run, "lab/mine", "--yes", **environment | {"HF_HUB_OFFLINE": "1"})
    assert_refused(offline, "lab/mine: HF_HUB_OFFLINE is set, so the hub is not asked; unset it")


def test_only_finished_and_intact_models_are_pushed(
    run: Path, cli_here: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(cli_here("push", tmp_path / "none", "lab/mine"), "none: no such run directory")
    assert_refused(cli_here("push", run, "lab/mine", "-i", 2), "iteration 2 is not finished yet; run `xlr run")
    assert_refused(
        cli_here("push", run, "lab/mine", "-i", 0), "--iteration 0: not trained by this run; choose one of 1"
    )
    model = run / "iter1" / "model"
    (model / "notes.txt").write_text("private")
    assert_refused(cli_here("push", run, "lab/mine"), "notes.txt: is not a file of this artefact")
    (model / "notes.txt").unlink()
    weights = model / "model.safetensors"
    before, content = file_digest(weights), weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(digests, "_REMEMBERED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = weights.stat()
    times = {"modified_ns": found.st_mtime_ns, "changed_ns": found.st_ctime_ns}
    note = {"inode": found.st_ino, "size": found.st_size, **times, "digest": before}
    digests._remember(digests._memory(weights), note)  # as a disk that lost a bit: the times are the same
    assert file_digest(weights) == before
    assert_refused(cli_here("push", run, "lab/mine"), "model.safetensors: has changed since it was written")
    (run / "iter1" / "model.manifest.json").unlink()
    assert_refused(cli_here("push", run, "lab/mine"), "no iteration is finished yet")


def test_every_weight_file_of_an_export_is_one_that_a_push_replaces() -> None:
    from fnmatch import fnmatch

    from xlr.training.export import SHARD_BYTES, _shards

    names = {*_shards({"a": 1}).values(), *_shards({"a": SHARD_BYTES, "b": 1}).values(), "model.safetensors.index.json"}
    assert len(names) == 4
    assert all(fnmatch(name, _WEIGHTS) for name in names)

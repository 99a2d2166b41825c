"""A run uses one commit of a hub model or dataset. The hub is a local cache, as on a node without network."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from xlr import configfile
from xlr.chat.encoding import load_tokenizer
from xlr.errors import UserError
from xlr.foreign.hub import named
from xlr.pipeline import Stage, holding
from xlr.run.context import Context
from xlr.settings.config import Config
from xlr.settings.dataconfig import PreferencesConfig

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def cache(tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which the hub model lab/tiny has one commit."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "hub" / "models--lab--tiny"
    shutil.copytree(tiny_models["initial"], model / "snapshots" / FIRST)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(FIRST)
    return model


def opened(tree: dict[str, Any]) -> Context:
    tree = tree | {"model": {"initial": "lab/tiny", "aligned": tree["model"]["aligned"]}}
    return Context(Config.model_validate(tree))


def test_a_new_commit_on_the_hub_does_not_change_a_run(
    cache: Path, tiny_tree: dict[str, Any], tiny_models: dict[str, Path]
) -> None:
    context = opened(tiny_tree)
    with holding(context, [Stage("generate", 1)]):
        assert Path(context.model(-1)) == cache / "snapshots" / FIRST
    shutil.copytree(tiny_models["aligned"], cache / "snapshots" / SECOND)
    (cache / "refs" / "main").write_text(SECOND)
    assert Path(opened(tiny_tree).model(-1)) == cache / "snapshots" / FIRST
    other = opened(tiny_tree | {"run_dir": f"{tiny_tree['run_dir']}-2"})
    assert other.model(-1) == "lab/tiny"  # nothing is asked before a run starts
    other.look_up()
    assert Path(other.model(-1)) == cache / "snapshots" / SECOND


def test_a_folder_whose_name_has_an_at_sign_stays_a_folder(
    tiny_tree: dict[str, Any], tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_models["initial"], tmp_path / "lab" / "tiny@v1")
    shutil.copytree(tiny_tree["prompts"]["path"], tmp_path / "lab" / "prompts@v1")
    monkeypatch.chdir(tmp_path)
    tree = tiny_tree | {
        "model": {**tiny_tree["model"], "initial": "lab/tiny@v1"},
        "prompts": {"path": "lab/prompts@v1"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    context = Context(configfile.load(tmp_path / "run.yaml"))
    assert context.repositories == []
    assert context.model(-1) == str(tmp_path / "lab" / "tiny@v1")
    assert load_tokenizer("lab/tiny@v1")("a")
    assert set(context.prompts) == {"en", "es"}


@pytest.mark.parametrize("name", ["lab/tiny@", "lab/tiny@-x", "lab/tiny@a b"])
def test_an_at_sign_without_a_revision_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}: no revision after the @; write owner/name@ and"):
        named(name)


def test_a_model_that_the_hub_does_not_give_is_refused(cache: Path, tiny_tree: dict[str, Any]) -> None:
    shutil.rmtree(cache)
    with pytest.raises(UserError, match=r"^lab/tiny: not a folder, and the hub does not give this model"):
        opened(tiny_tree).look_up()


def test_damaged_commits_are_refused(cache: Path, tiny_tree: dict[str, Any]) -> None:
    with holding(opened(tiny_tree), []):
        pass
    path = Path(tiny_tree["run_dir"]) / "hub.json"
    path.write_text(path.read_text().replace("1111", "2222"))
    with pytest.raises(UserError, match=r"hub\.json: damaged .*restore it from a copy"):
        opened(tiny_tree).model(-1)


def test_a_run_uses_one_commit_of_a_dataset(cache: Path, tiny_tree: dict[str, Any]) -> None:
    repository = cache.parent / "datasets--lab--pairs"
    (repository / "snapshots" / FIRST).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(FIRST)
    tree = tiny_tree | {"align": {"preferences": {"path": "lab/pairs", "split": "train_prefs"}}}
    context = opened(tree)
    assert context.pinned(context.config.align.preferences) == context.config.align.preferences
    with holding(context, []):
        assert context.pinned(context.config.prompts) == context.config.prompts  # a folder
    (repository / "snapshots" / SECOND).mkdir()
    (repository / "refs" / "main").write_text(SECOND)
    again = opened(tree)
    assert str(again.repositories[-1]) == "datasets/lab/pairs"
    again.look_up()
    pinned = again.pinned(again.config.align.preferences)
    assert pinned == PreferencesConfig(path=f"lab/pairs@{FIRST}", split="train_prefs")
    assert again.pinned("lab/pairs") == f"lab/pairs@{FIRST}"

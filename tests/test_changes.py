"""Whatever changes while a stage is interrupted, its result is equal to an undisturbed one, or the change is refused.

The changes are generated from the schema, so a new setting is among them by itself. `make sweep` makes all of them, in
every stage that resumes; otherwise every few of them.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from tests import inprocess, tiny
from tests.inprocess import StoppedError
from xlr.errors import UserError
from xlr.pipeline import Stage
from xlr.run.artifact import Artifact
from xlr.run.files import remove
from xlr.run.manifests import read_manifest
from xlr.settings.config import Config
from xlr.settings.schema import Setting, walk

EVERY = 1 if os.environ.get("XLR_SWEEP") else 12
STAGES = (Stage("generate", 1), Stage("score", 1), Stage("reference", 1), Stage("evaluate", 0))
ANOTHER_TEXT = "another"


@pytest.fixture(scope="module")
def base(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A configuration, and a run directory in which every stage is finished but for training."""
    from tests.conftest import tiny_tree

    folder = tmp_path_factory.mktemp("base")
    tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    shutil.copytree(tree["prompts"]["path"], folder / "prompts")
    shutil.copytree(tree["evaluate"]["prompts"]["path"], folder / "heldout")
    tree["prompts"]["path"], tree["evaluate"]["prompts"]["path"] = str(folder / "prompts"), str(folder / "heldout")
    tree["train"]["reference_mode"] = "cached"
    tree["generate"]["batch_size"] = 6
    tree["score"]["batch_tokens"] = 200
    config = Config.model_validate(tree)
    run = folder / "run"
    for stage in (Stage("generate", 1), Stage("score", 1), Stage("pair", 1), *STAGES[2:]):
        stage.module.make(inprocess.opened(config, run), stage.iteration)
    return config, run


def other_values(setting: Setting) -> Iterator[Any]:
    """Values that differ from a setting's own, by its type; some of them may not be allowed."""
    value, annotation = setting.value, setting.field.annotation
    options = [annotation, *get_args(annotation)]
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    if choices:
        yield from (choice for choice in choices if choice != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value // 2 if isinstance(value, int) else value / 2)
    elif isinstance(value, str):
        yield ANOTHER_TEXT
    elif isinstance(value, list | tuple):
        yield from (value[:-1], [*value, *value[:1]])
    else:
        yield from (1, 0.5, ANOTHER_TEXT, True)


def changed(config: Config, setting: Setting, value: Any) -> Config | None:
    """The configuration with another value; None if it is not allowed."""
    tree = config.model_dump(mode="json")
    *sections, key = setting.dotted.split(".")
    section = tree
    for name in sections:
        section = section[name]
    section[key] = value
    try:
        return Config.model_validate(tree)
    except (ValidationError, UserError):
        return None


def unfinished(run: Path, stage: Stage, config: Config, copy: Path) -> Path:
    """A copy of a run in which the stage was interrupted after two tasks."""
    remove(copy)
    shutil.copytree(run, copy)
    artifact = stage.artifact(inprocess.opened(config, copy))
    remove(artifact.folder)
    artifact.folder.with_name(f"{artifact.folder.name}.manifest.json").unlink()
    with pytest.raises(StoppedError):
        stage.module.make(inprocess.opened(config, copy, fail_after=2), stage.iteration)
    return copy


def digest(artifact: Artifact) -> str:
    manifest = read_manifest(artifact.folder)
    assert manifest is not None
    return manifest["digest"]


def outcome(stage: Stage, config: Config, run: Path) -> str:
    """The digest of the continued stage, or `refused`."""
    context = inprocess.opened(config, run)
    try:
        stage.module.make(context, stage.iteration)
    except UserError:
        return "refused"
    return digest(stage.artifact(context))


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_changed_setting_is_refused_or_changes_nothing(
    stage: Stage, base: tuple[Config, Path], tmp_path: Path
) -> None:
    config, run = base
    undisturbed = digest(stage.artifact(inprocess.opened(config, run)))
    interrupted = unfinished(run, stage, config, tmp_path / "interrupted")
    tried = {"refused": 0, "equal": 0, "not allowed": 0}
    settings = [setting for setting in walk(config) if setting.dotted != "run_dir"]
    for number, setting in enumerate(settings):
        for value in other_values(setting):
            if (number + len(stage.name)) % EVERY:
                continue
            other = changed(config, setting, value)
            if other is None:
                tried["not allowed"] += 1
                continue
            copy = tmp_path / "copy"
            remove(copy)
            shutil.copytree(interrupted, copy)
            found = outcome(stage, other, copy)
            if found not in ("refused", undisturbed):
                fresh = unfinished(run, stage, config, tmp_path / "fresh")
                for folder in stage.artifact(inprocess.opened(config, fresh)).pieces_folders():
                    remove(folder)
                assert found == outcome(stage, other, fresh), f"{setting.dotted}={value!r}: mixed"
            tried["refused" if found == "refused" else "equal"] += 1
    assert tried["refused"] > 1 or EVERY > 1, tried
    assert tried["equal"] > 2, tried
    print(stage, tried)


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_changed_input_is_refused(stage: Stage, base: tuple[Config, Path], tmp_path: Path) -> None:
    """Every input of the stage in turn: one byte of a file of text, one weight of a model, another artefact."""
    config, run = base
    interrupted = unfinished(run, stage, config, tmp_path / "interrupted")
    inputs = stage.artifact(inprocess.opened(config, interrupted)).inputs
    for name, path in {name: str(source) for name, source in inputs.items()}.items():
        copy = tmp_path / "copy"
        remove(copy)
        shutil.copytree(interrupted, copy)
        if Path(path).is_relative_to(interrupted):
            (copy / Path(path).relative_to(interrupted)).with_name(f"{Path(path).name}.manifest.json").unlink()
            continue
        file = Path(path) if Path(path).is_file() else Path(path) / "model.safetensors"
        whole = file.read_bytes()
        try:
            file.write_bytes(whole.replace(b"e", b"a", 1) if file.suffix != ".safetensors" else whole[:-1] + b"\x01")
            assert outcome(stage, config, copy) == "refused", name
        finally:
            file.write_bytes(whole)
    copy = tmp_path / "untouched"
    shutil.copytree(interrupted, copy)
    assert outcome(stage, config, copy) == digest(stage.artifact(inprocess.opened(config, run)))


def test_a_tiny_model_is_not_the_same_with_another_seed(tmp_path: Path) -> None:
    """The sweep is only worth something if other weights give other results."""
    one, other = tiny.save(tmp_path / "a", seed=1), tiny.save(tmp_path / "b", seed=2)
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()

"""Which stages variants share is known before anything is computed, and is what comes out."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import inprocess
from tests.conftest import tiny_tree
from tests.inprocess import ANNOTATION, digests, made, with_settings
from xlr.jobs import machines
from xlr.pipeline import Stage
from xlr.planning.machines import Machines
from xlr.run.context import Context
from xlr.settings.config import Config
from xlr.sweep import shared
from xlr.sweep.variants import Variant


@pytest.fixture
def config(tiny_models: dict[str, Path], tmp_path: Path) -> Config:
    tree = tiny_tree.__wrapped__(tiny_models, tmp_path)  # type: ignore[attr-defined]
    shutil.copytree(tree["prompts"]["path"], tmp_path / "prompts")
    tree["prompts"]["path"] = str(tmp_path / "prompts")
    return Config.model_validate(tree | {"iterations": 2})


SECTIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "reward": {"score": {"reward": "multilingual"}},
    "pairing": {"pair": {"length_control": False}},
    "loss": {"train": {"beta": 0.2}},
    "seed": {"seed": 7},
    "speed": {"ray": {"actors": 2}},
}


def test_equal_keys_are_equal_artefacts(config: Config, tmp_path: Path) -> None:
    """The annotation is really made, without sharing. Whatever has an equal key has an equal digest."""
    keys, content = {}, {}
    for name, section in SECTIONS.items():
        own = with_settings(config, **section)
        planned = shared.keys(inprocess.opened(own, tmp_path / name))
        context = made(own, tmp_path / name)
        found = digests(context)
        assert shared.keys(inprocess.opened(own, tmp_path / name)) == planned, "what is finished changed a key"
        for stage in ANNOTATION:
            keys[name, str(stage)], content[name, str(stage)] = planned[stage], found[str(stage)]
    for one in keys:
        for other in keys:
            if keys[one] == keys[other]:
                assert content[one] == content[other], f"{one} and {other} differ"
    assert keys["reward", "generate 1"] == keys["pairing", "generate 1"] == keys["speed", "generate 1"]
    assert keys["base", "score 1"] == keys["loss", "score 1"] != keys["reward", "score 1"]
    assert keys["base", "generate 1"] != keys["seed", "generate 1"]


def here(context: Context) -> Callable[[Stage], Machines]:
    """Every stage runs on this machine."""
    return machines.named(context.config, "here")


def test_each_stage_is_made_by_the_first_variant_that_has_it(config: Config, tmp_path: Path) -> None:
    variants = [
        Variant(name, inprocess.opened(with_settings(config, **section), tmp_path / name), {})
        for name, section in SECTIONS.items()
    ]
    planned = {one.variant.name: one for one in shared.divide(variants, here)}
    own = {name: set(map(str, one.own)) for name, one in planned.items()}
    everything = {str(stage) for stage in planned["base"].makers}
    assert own["base"] == everything
    assert own["reward"] == everything - {"evaluate 0", "generate 1"}
    assert own["pairing"] == everything - {"evaluate 0", "generate 1", "score 1"}
    assert own["loss"] == everything - {"evaluate 0", "generate 1", "score 1", "pair 1"}
    assert own["seed"] == everything
    assert own["speed"] == set()
    assert planned["speed"].makers[Stage("train", 2)] == "base"


def test_what_another_has_finished_is_not_planned_again(config: Config, tmp_path: Path) -> None:
    context = made(config, tmp_path / "base")
    variants = [
        Variant("base", context, {}),
        Variant("loss", inprocess.opened(with_settings(config, train={"beta": 0.2}), tmp_path / "loss"), {}),
    ]
    base, loss = shared.divide(variants, here)
    assert not {"generate 1", "score 1", "pair 1"} & set(map(str, base.makers))
    assert not {"generate 1", "score 1", "pair 1"} & set(map(str, loss.own)), "they are taken over"

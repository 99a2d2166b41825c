"""The file of a sweep: its variants, and what is wrong with it."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.sweep.conftest import Write
from xlr.errors import UserError
from xlr.shipped import SWEEPS
from xlr.sweep.variants import open_sweep, recorded_runs


def test_variants_and_a_grid_become_runs_of_one_folder(write_sweep: Write, tmp_path: Path) -> None:
    sweep = open_sweep(
        write_sweep(
            overrides={"seed": 7},
            variants={"long": {"train.num_train_epochs": 3, "train.beta": 0.2}},
            grid={"score.reward": ["crosslingual", "multilingual"], "pair.rejected": ["worst", "median"]},
        )
    )
    found = {variant.name: variant.context.config for variant in sweep.variants}
    assert list(found) == ["base", "long", "crosslingual-median", "multilingual-worst", "multilingual-median"]
    assert {config.run_dir for config in found.values()} == {str(tmp_path / "runs" / name) for name in found}
    assert {config.reuse for config in found.values()} == {(str(tmp_path / "runs"),)}
    assert {config.seed for config in found.values()} == {7}
    assert (found["long"].train.num_train_epochs, found["long"].train.beta) == (3, 0.2)
    assert (found["multilingual-median"].score.reward, found["multilingual-median"].pair.rejected) == (
        "multilingual",
        "median",
    )


def test_a_sweep_is_read_from_its_folder_and_from_another_one(
    write_sweep: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may be gone; its base is still needed."""
    path = write_sweep(variants={"other": {"model.system_prompt": 'Réponds: "oui" 🙂'}})
    sweep = open_sweep(path)
    sweep.record()
    path.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = open_sweep(tmp_path / "runs")
    assert [one.context.config for one in again.variants] == [one.context.config for one in sweep.variants]
    assert again.variants[1].context.config.model.system_prompt == 'Réponds: "oui" 🙂'


def test_values_that_are_lists_or_paths_give_names_of_folders(write_sweep: Write) -> None:
    sweep = open_sweep(write_sweep(grid={"pair.upper_bound": [None, [None, 500.0]], "train.beta": [0.2, [0.2, 0.1]]}))
    assert [one.name for one in sweep.variants] == [
        "base",
        "None-0.2",
        "None-0.2_0.1",
        "None_500.0-0.2",
        "None_500.0-0.2_0.1",
    ]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({}, "has no variants; write them under variants or grid"),
        ({"variants": {"one": {"train.bta": 1}}}, r"variant one: .*base\.yaml: train\.bta: unknown key; did you mean"),
        ({"variants": {"one": {"train.beta": "much"}}}, r"variant one: .*train\.beta: input should be"),
        ({"variants": {"one": {"run_dir": "x"}}}, "run_dir: is set by the sweep"),
        ({"variants": {"one": {}}}, "variants.one: has the same settings as base"),
        ({"variants": {"a": {"seed": 1}, "b": {"seed": 1}}}, "variants.b: has the same settings as a"),
        ({"variants": {"base": {"seed": 1}}}, "two variants are named base"),
        ({"variants": {"a/b": {"seed": 1}}}, "variants.a/b"),
        ({"variants": ["a"]}, "variants: input should be a section"),
        ({"grid": {"seed": 1}}, "grid.seed: input should be a"),
        ({"grid": {"seed": []}}, "grid.seed: list should have at least 1 item"),
        ({"grid": {"score.reward": ["none"]}}, r"variant none: .*score\.reward: input should be 'crosslingual'"),
        ({"base": "nowhere.yaml"}, "base: .*nowhere.yaml.* is neither a recipe"),
        ({"at_once": 0, "grid": {"seed": [1, 2]}}, "at_once: input should be greater than or equal to 1"),
        ({"sweep_dir": "$NOT_SET/x", "grid": {"seed": [1, 2]}}, "sweep_dir: .* the variable NOT_SET is not set"),
        ({"variant": {}}, "variant: unknown key; did you mean variants"),
    ],
)
def test_what_is_wrong_is_named(sweep: dict[str, Any], message: str, write_sweep: Write) -> None:
    path = write_sweep(**sweep)
    with pytest.raises(UserError, match=message) as refused:
        open_sweep(path)
    assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize("recipe", SWEEPS)
def test_a_recipe_is_a_sweep(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli_here: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    written = cli_here("init", "mine", "--recipe", recipe)
    assert written.stdout == "mine.yaml: written. Edit it, then: xlr sweep run mine.yaml --dry-run\n", written.stderr
    sweep = open_sweep("mine.yaml")
    assert [one.name for one in sweep.variants] == ["base", *sweep.settings.variants]
    assert max(one.context.config.iterations for one in sweep.variants) == 3


def test_a_sweep_that_is_not_there_or_has_not_begun_is_named(write_sweep: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such sweep; name its file, or the folder"):
        open_sweep(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="no run of this sweep has begun; start it with `xlr sweep run"):
        recorded_runs(write_sweep(grid={"seed": [1, 2]}))

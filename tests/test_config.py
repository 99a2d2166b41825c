"""The configuration tree: typed, complete, and helpful when it is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xlr import config
from xlr.errors import UserError

RECIPES = sorted(path.stem for path in config.RECIPES.glob("*.yaml") if path.stem != "site")


@pytest.fixture
def path(write_config: Callable[[dict[str, Any]], Path]) -> Path:
    return write_config(
        {"languages": ["en", "es"], "model": {"initial": "a", "aligned": "b"}, "prompts": {"path": "p"}}
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_loads_and_survives_a_round_trip(recipe: str, tmp_path: Path) -> None:
    loaded = config.load(config.RECIPES / f"{recipe}.yaml")
    (tmp_path / "config.yaml").write_text(config.dump(loaded), encoding="utf-8")
    assert config.load(tmp_path) == loaded


def test_the_paper_s_recipe_has_the_paper_s_numbers() -> None:
    run = config.load(config.RECIPES / "llama3-8b.yaml")
    assert run.languages == ("en", "es", "ru", "de", "fr")
    assert (run.prompts.limit, run.generate.num_samples, run.generate.temperature) == (3000, 10, 0.9)
    assert (run.generate.top_p, run.generate.max_new_tokens, run.seed) == (1.0, 2400, 42)
    assert (run.train.beta, run.train.nll_weight, run.train.global_batch_size) == (0.1, 1.0, 32)
    assert (run.train.learning_rate, run.iterations) == (5e-7, 2)


def test_overrides_reach_into_sections(path: Path) -> None:
    run = config.load(path, ["train.beta=0.2", "train.learning_rate=1e-5", "languages=[en, de]", "prompts.limit=7"])
    assert (run.train.beta, run.train.learning_rate) == (0.2, 1e-5)
    assert (run.languages, run.prompts.limit) == (("en", "de"), 7)


@pytest.mark.parametrize(("overrides", "size"), [([], 64), (["generate.backend=vllm"], 1024)])
def test_a_batch_suits_what_samples_it_unless_it_is_set(path: Path, overrides: list[str], size: int) -> None:
    assert config.load(path, overrides).generate.batch_size == size
    assert config.load(path, [*overrides, "generate.batch_size=7"]).generate.batch_size == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.bta=1", r"train\.bta: unknown key; did you mean beta\? valid here: beta, loss_type"),
        ("trian.beta=1", r"trian: unknown key; did you mean train\?"),
        ("evaluate.prompts.pth=x", r"evaluate\.prompts\.path: field required"),
        ("train.beta=-1", r"train\.beta: input should be greater than 0 \(it is -1\)"),
        ("train.beta=much", r"train\.beta: .*number.*'much'"),
        ("languages=[en, qq]", r"'qq' is not a known ISO 639-1 language code"),
        ("languages=[es, es]", r"a code stands twice"),
        ("model.aligned=null", r"model\.aligned is not set.*align\.preferences"),
        ("generate.tensor_parallel_size=2", r"transformers samples on one GPU; set generate\.backend to vllm"),
        ("seed", r"section\.key=value"),
        ("seed.x=1", r"seed is a value, not a section"),
        ("train.beta={", r"not valid YAML"),
    ],
)
def test_a_wrong_key_or_value_is_named(path: Path, override: str, message: str) -> None:
    overrides = ["seed=1", override] if override == "seed.x=1" else [override]
    with pytest.raises(UserError, match=message):
        config.load(path, overrides)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "languages: \xff"])
def test_a_file_that_is_not_a_configuration_is_named(tmp_path: Path, text: str) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"broken\.yaml"):
        config.load(broken)


def test_paths_become_absolute_and_hub_names_stay(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local-model").mkdir()
    monkeypatch.chdir(tmp_path)
    run = config.load(path, ["model.initial=owner/name", "model.aligned=local-model", "train.ds_config=my.json"])
    assert run.model.initial == "owner/name"
    assert run.model.aligned == str(tmp_path / "local-model")
    assert run.train.ds_config == str(tmp_path / "my.json")
    assert run.train.reference_ds_config == "reference"
    assert run.run_dir == str(tmp_path / "runs" / "run")


def test_operational_settings_do_not_decide_a_result(path: Path) -> None:
    run = config.load(path)
    keys = config.settings(run.train, "train")
    assert "train.beta" in keys
    assert not {"train.processes", "train.save_steps"} & set(keys)


def test_the_schema_describes_every_field() -> None:
    schema = config.Config.model_json_schema()
    json.dumps(schema, allow_nan=False)
    for name, section in schema["$defs"].items():
        for key, field in section["properties"].items():
            assert field.get("description") or "$ref" in str(field), f"{name}.{key} has no description"


def test_what_decides_a_result_is_neither_where_it_lies_nor_what_computes_it() -> None:
    recipe = config.load(config.RECIPES / "quickstart.yaml")
    decisive = config.settings(recipe)
    assert decisive.items() >= config.settings(recipe.train, "train").items()
    assert decisive["seed"] == recipe.seed
    assert not {key for key in decisive if key.startswith(("slurm", "ray", "run_dir", "iterations"))}

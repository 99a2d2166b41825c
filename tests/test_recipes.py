"""Every recipe plans and annotates, with its own settings, on tiny models and prompts in its own languages."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny
from tests.conftest import Cli
from tests.inprocess import made
from xlr import configfile
from xlr.records import Pair
from xlr.run.manifests import rows_of
from xlr.settings.config import Config
from xlr.shipped import RECIPES, SWEEPS, recipes

# `make quickstart` runs those of the quickstart.
RUNS = [name for name in recipes() if name not in ("site", *SWEEPS) and not name.startswith("quickstart")]


def write_prompts(folder: Path, langs: tuple[str, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    for lang in {"en", *langs}:
        rows = [{"instruction_id": str(number), "instruction": f"{lang} {number}?"} for number in range(4)]
        (folder / f"{lang}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


def write_outputs(folder: Path, langs: tuple[str, ...]) -> Path:
    folder.mkdir()
    for lang in langs:
        rows = [
            {"instruction": f"{lang} {number}?", "output": f"{number}.", "generator": "other"} for number in range(4)
        ]
        (folder / f"{lang}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def tiny_overrides(config: Config, models: dict[str, Path], folder: Path) -> dict[str, Any]:
    """What makes a recipe tiny. All that says how it is done stays."""
    prompts = str(write_prompts(folder / "prompts", config.all_languages))
    found: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        **{f"model.{name}": str(path) for name, path in models.items()},
        "model.dtype": "float32",
        "prompts.path": prompts,
        "prompts.limit": 3,
        "generate.backend": "transformers",
        "generate.max_num_seqs": 256,
        "generate.num_samples": min(4, config.at(1).generate.num_samples),
        "generate.max_new_tokens": 12,
        "generate.batch_size": 16,
        "score.batch_tokens": 512,
        "train.ds_config": "zero3_cpu",
        "train.reference_ds_config": "reference_cpu",
        "evaluate.max_new_tokens": 12,
        "ray.actors": 1,
    }
    if config.score.model:
        found["score.model"] = str(tiny.save_reward_model(folder / "rm", 3))
    if config.evaluate.prompts:
        found |= {"evaluate.prompts.path": prompts}
    if isinstance(config.judge.baseline, str):
        found["judge.baseline"] = str(write_outputs(folder / "outputs", config.evaluated_languages))
    return found


@pytest.mark.parametrize("recipe", RUNS)
def test_a_recipe_plans_and_annotates(
    recipe: str, tiny_models: dict[str, Path], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    path = RECIPES / f"{recipe}.yaml"
    given = configfile.load(path)
    overrides = [f"{key}={json.dumps(value)}" for key, value in tiny_overrides(given, tiny_models, tmp_path).items()]
    config = configfile.load(path, overrides)
    assert config.languages == given.languages
    assert (config.pair, config.score.reward) == (given.pair, given.score.reward)
    planned = cli("plan", path, *overrides)
    assert planned.returncode == 0, planned.stderr
    assert "train 1" in planned.stdout
    made(config, tmp_path / "run")
    pairs = rows_of(tmp_path / "run" / "iter1" / "pairs", Pair)
    assert {pair.lang for pair in pairs} == set(given.trained_languages)


@pytest.mark.parametrize("recipe", SWEEPS)
def test_a_sweep_says_what_is_shared(recipe: str, tiny_models: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    sweep = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))
    given = configfile.load(RECIPES / f"{sweep['base']}.yaml")
    base = {"extends": sweep["base"]}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    own = tiny_overrides(given, tiny_models, tmp_path)
    sweep["overrides"] = {
        **{key: value for key, value in own.items() if key not in ("run_dir", "prompts.limit")},
        "evaluate.prompts.path": own["prompts.path"],
    }
    starts = [name for name, changes in sweep["variants"].items() if "model.aligned" in changes]
    assert len(starts) == 3
    for number, name in enumerate(starts):  # other models of the hub
        start = tiny.make_model(len(tiny.make_tokenizer("qwen")), seed=1)
        sweep["variants"][name]["model.aligned"] = str(tiny.save(tmp_path / name, seed=5 + number, start=start))
    path = tmp_path / "sweep.yaml"
    path.write_text(
        yaml.safe_dump(sweep | {"base": "base.yaml", "sweep_dir": str(tmp_path / "runs")}), encoding="utf-8"
    )
    shown = cli("sweep", "run", path, "--dry-run", COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for name in sweep["variants"])
    assert "stages to make; run by run it would be" in shown.stdout

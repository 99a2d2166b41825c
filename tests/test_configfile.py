"""Configuration files: inheritance, overrides, absolute paths, and errors that name the file and the key."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Cli, assert_refused
from tests.settings.test_config import FIELDS
from xlr import configfile
from xlr.certificate import facts
from xlr.errors import UserError
from xlr.settings.dataconfig import PreferencesConfig
from xlr.settings.schema import Location, marks
from xlr.settings.slurmconfig import SlurmConfig
from xlr.shipped import RECIPES, SWEEPS, recipes

RUN_RECIPES = [name for name in recipes() if name not in ("site", *SWEEPS)]


@pytest.fixture
def path(write_config: Callable[[dict[str, Any]], Path]) -> Path:
    return write_config(
        {"languages": ["en", "es"], "model": {"initial": "a", "aligned": "b"}, "prompts": {"path": "p"}}
    )


def written(path: Path, **tree: Any) -> Path:
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("recipe", RUN_RECIPES)
def test_every_recipe_loads_and_survives_a_round_trip(recipe: str, tmp_path: Path) -> None:
    loaded = configfile.load(RECIPES / f"{recipe}.yaml")
    (tmp_path / "config.yaml").write_text(configfile.dump(loaded), encoding="utf-8")
    assert configfile.load(tmp_path) == loaded
    assert "extends" not in configfile.dump(loaded)


def test_the_site_profile_loads() -> None:
    assert configfile.load_section(RECIPES / "site.yaml", SlurmConfig).gpus == 8


def test_the_recipe_of_the_paper_has_its_numbers() -> None:
    run = configfile.load(RECIPES / "llama3-8b.yaml")
    assert run.languages == ("en", "es", "ru", "de", "fr")
    assert (run.prompts.limit, run.generate.num_samples, run.generate.temperature) == (3000, 10, 0.9)
    assert (run.generate.top_p, run.generate.max_new_tokens, run.seed) == (1.0, 2400, 42)
    assert (run.train.beta, run.train.nll_weight, run.train.global_batch_size) == (0.1, 1.0, 32)
    assert (run.train.learning_rate, run.iterations) == (5e-7, 2)


def test_weights_of_rewards_are_replaced_as_a_whole(tmp_path: Path) -> None:
    """If they were merged with those of the extended file, no file could drop a reward."""
    (tmp_path / "mine.yaml").write_text(
        "extends: reward-model\nrun_dir: runs/mine\nscore: {reward: {crosslingual: 1, model: 2}}\n", encoding="utf-8"
    )
    (tmp_path / "other.yaml").write_text(
        "extends: mine.yaml\nrun_dir: runs/other\nscore: {reward: {model: 1, multilingual: 1}}\n", encoding="utf-8"
    )
    assert configfile.load(tmp_path / "mine.yaml").score.weights == {"crosslingual": 1, "model": 2}
    other = configfile.load(tmp_path / "other.yaml").score
    assert (other.weights, other.first) == ({"model": 1, "multilingual": 1}, "model")
    assert facts.prefix(configfile.load(tmp_path / "mine.yaml")) == "certify-crosslingual-model-"


def test_the_low_resource_recipe_differs_in_languages_and_folder_only() -> None:
    base, low = (configfile.load(RECIPES / f"{name}.yaml") for name in ("llama3-8b", "llama3-8b-low-resource"))
    assert low.languages == ("en", "bn", "sw", "th")
    assert low == base.model_copy(update={"languages": low.languages, "run_dir": low.run_dir})
    assert low.run_dir != base.run_dir


def test_a_copy_of_a_recipe_that_extends_another_works_anywhere(cli_here: Cli, tmp_path: Path) -> None:
    assert cli_here("init", "v1.5", "--recipe", "llama3-8b-low-resource", cwd=tmp_path).returncode == 0
    assert configfile.load(tmp_path / "v1.5.yaml").train == configfile.load(RECIPES / "llama3-8b.yaml").train


def test_sections_are_merged_and_lists_are_replaced(path: Path, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    train = {"beta": 0.2, "max_steps": 3}
    written(tmp_path / "middle.yaml", extends="run.yaml", train=train, languages=["de"])
    top = written(tmp_path / "below" / "top.yaml", extends="../middle.yaml", train={"max_steps": None})
    run, base = configfile.load(top), configfile.load(path)
    assert run.languages == ("de",)
    assert run.train == base.train.model_copy(update={"beta": 0.2})
    assert (run.model, run.prompts) == (base.model, base.prompts)
    assert configfile.load(top, ["train.beta=0.3"]).train.beta == 0.3


def sections(values: Any) -> Any:
    return st.dictionaries(st.sampled_from("abc"), values, max_size=3)


TREES = sections(st.recursive(st.none() | st.integers() | st.lists(st.integers(), max_size=2), sections))


@given(TREES, TREES)
def test_what_a_file_sets_wins_and_merging_it_again_changes_nothing(inherited: Any, own: Any) -> None:
    merged = configfile._merged(inherited, own)
    assert merged.keys() == inherited.keys() | own.keys()
    assert configfile._merged(merged, own) == merged
    assert configfile._merged(inherited, {}) == configfile._merged({}, inherited) == inherited
    assert all(merged[key] == own[key] for key in own if not isinstance(own[key], dict))
    assert all(merged[key] == inherited[key] for key in inherited.keys() - own.keys())


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nothing", r"run\.yaml: extends: .nothing. is neither a recipe \(.*llama3-8b.*\) nor a file"),
        (3, r"run\.yaml: extends: 3 is neither a recipe"),
        ("run.yaml", r"run\.yaml: extends: the files extend each other in a circle \(.*run\.yaml -> .*run\.yaml\)"),
        ("other.yaml", r"other\.yaml: extends: .* in a circle \(.*run\.yaml -> .*other\.yaml -> .*run\.yaml\)"),
    ],
)
def test_a_base_that_cannot_be_used_is_named(path: Path, tmp_path: Path, base: Any, message: str) -> None:
    written(tmp_path / "other.yaml", extends="run.yaml")
    written(path, extends=base)
    with pytest.raises(UserError, match=message):
        configfile.load(path)


def test_an_error_names_the_files_that_are_extended(path: Path, tmp_path: Path, cli_here: Cli) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "train: {bta: 1}\n", encoding="utf-8")
    top = written(tmp_path / "top.yaml", extends="run.yaml")
    assert_refused(cli_here("config", top), f"{top} (extends {path}): train.bta: unknown key; did you mean beta?")


def test_overrides_reach_into_sections(path: Path) -> None:
    overrides = ["train.beta=0.2", "train.learning_rate=1e-5", "languages=[en, de]", "prompts.limit=7"]
    run = configfile.load(path, [*overrides, "evaluate.prompts.path=held"])
    assert (run.train.beta, run.train.learning_rate) == (0.2, 1e-5)
    assert (run.languages, run.prompts.limit) == (("en", "de"), 7)
    assert run.evaluate.prompts is not None


def test_an_override_of_a_section_that_is_null_in_a_run_directory_sets_it(path: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(configfile.dump(configfile.load(path)), encoding="utf-8")
    held_out = configfile.load(tmp_path, ["evaluate.prompts.path=lab/held"]).evaluate.prompts
    assert held_out is not None
    assert held_out.path == "lab/held"


def test_an_override_reaches_one_of_two_sections_that_share_an_alias(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}align: &same {{beta: 0.3}}\ntrain: *same\n", encoding="utf-8")
    run = configfile.load(path, ["train.beta=0.2"])
    assert (run.align.beta, run.train.beta) == (0.3, 0.2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.bta=1", r"run\.yaml: train\.bta: unknown key; did you mean beta\? valid here: beta, loss_type"),
        ("trian.beta=1", r"trian: unknown key; did you mean train\?"),
        ("extend=llama3-8b", r"extend: unknown key; did you mean extends\?"),
        ("slurm.jobs.time.nods=1", r"slurm\.jobs\.time\.nods: unknown key; did you mean nodes\?"),
        ("evaluate.prompts.pth=x", r"evaluate\.prompts\.path: not set; add it"),
        ("train.beta=-1", r"train\.beta: input should be greater than or equal to 0.000001 \(it is -1\)"),
        ("train.beta=much", r"train\.beta: .*number.*\"much\""),
        ("languages=[es, es]", r"run\.yaml: languages: .*duplicate"),
        ("seed", r"section\.key=value"),
        ("seed.x=1", r'"seed" is a value, not a section'),
        ("train.beta={", r"override \"train\.beta=\{\": not valid YAML"),
        ("run_dir=~nobody-here/x", r'"~nobody-here/x": .*home directory.*; write the whole path'),
        ("extends=llama3-8b", r"only a file can extend another"),
        (".".join("a" * 5000) + "=1", r"a key has at most 20 parts"),
    ],
)
def test_a_wrong_key_or_value_is_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        configfile.load(path, ["seed=1", override])


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "languages: \xff"])
def test_a_file_that_is_not_a_configuration_is_named(tmp_path: Path, text: str) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"broken\.yaml"):
        configfile.load(broken)


def test_a_duplicate_key_is_refused_with_its_line(path: Path, cli_here: Cli) -> None:
    path.write_text("train:\n  beta: 0.2\nseed: 1\ntrain:\n  max_steps: 1\n", encoding="utf-8")
    assert_refused(cli_here("config", path), f"{path}:4: train: duplicate key; remove one of them")
    path.write_text("a: &a {x: 1}\nb: {<<: *a, x: 2}\n", encoding="utf-8")  # the own key wins over a merged one
    with pytest.raises(UserError, match="unknown key"):
        configfile.load(path)


def test_an_ignored_setting_ends_with_exit_code_2(path: Path, cli_here: Cli) -> None:
    assert_refused(cli_here("config", path, "align.reference=initial"), "align.reference: has no effect, because")


LOCATED = {dotted: marks(field, Location)[0] for dotted, field in FIELDS.items() if marks(field, Location)}


@pytest.mark.parametrize("dotted", LOCATED)
def test_every_marked_path_becomes_absolute(
    dotted: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    needed = [] if dotted == "judge.cache" else ["judge.backend=transformers"]
    needed += ["evaluate.prompts.path=held"]
    needed += ["judge.model=x"] if dotted == "evaluate.turns.path" else []
    needed += ["evaluate.preferences.path=x"] if dotted == "evaluate.preferences.english.path" else []
    needed += ["evaluate.benchmarks.tasks=[one]"] if dotted == "evaluate.benchmarks.include" else []
    needed += ["score.reward=model"] if dotted == "score.model" else []
    needed += ["score.reward=judge", "judge.model=x"] if dotted == "score.grading_template" else []
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    folders = {".": tmp_path, "~": tmp_path, "{recipes}": RECIPES}
    folders |= {"$SCRATCH": tmp_path / "scratch", "${SCRATCH}/a": tmp_path / "scratch" / "a"}
    for value, absolute in ((f"{name}/x.json", folder / "x.json") for name, folder in folders.items()):
        kind = str(FIELDS[dotted].annotation)
        named = f"{{NAME: '{value}'}}" if "dict" in kind else f"['{value}']" if "tuple" in kind else f"'{value}'"
        found: Any = configfile.load(path, [*needed, f"{dotted}={named}"])
        for key in dotted.split("."):
            found = getattr(found, key)
        one = found.get("NAME") if isinstance(found, dict) else found[0] if isinstance(found, tuple) else found
        assert one == str(absolute)


@pytest.mark.parametrize("value", ["$NO_SUCH/x", "/data/${NO_SUCH}/x", "$EMPTY"])
def test_a_variable_that_is_not_set_is_an_error(value: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a path used to be taken literally."""
    monkeypatch.setenv("EMPTY", "")
    for key in ("run_dir", "prompts.path", "model.initial"):
        with pytest.raises(UserError, match=r"the variable (NO_SUCH|EMPTY) is not set; set it, or write the path"):
            configfile.load(path, [f"{key}='{value}'"])


def test_names_stay_and_existing_folders_are_paths(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local-model").mkdir()
    monkeypatch.chdir(tmp_path)
    overrides = ["model.initial=owner/name", "model.aligned=local-model", "train.ds_config=my.json"]
    overrides += ["evaluate.models={gpt: owner/other}", "judge.baseline=gpt", "judge.model=local-model"]
    run = configfile.load(path, [*overrides, "evaluate.prompts.path=local-model"])
    assert (run.model.initial, run.model.aligned) == ("owner/name", str(tmp_path / "local-model"))
    assert (run.train.ds_config, run.train.reference_ds_config) == (str(tmp_path / "my.json"), "reference")
    assert (run.evaluate.models, run.judge.baseline) == ({"gpt": "owner/other"}, "gpt")
    assert run.judge.model == "local-model"  # the endpoint's name, though there is such a folder
    assert run.run_dir == str(tmp_path / "runs" / "run")


def test_the_schema_knows_extends_and_requires_nothing(cli_here: Cli) -> None:
    schema = json.loads(cli_here("config", "--schema").stdout)
    assert list(schema["properties"])[:2] == ["extends", "run_dir"]
    assert schema == configfile.schema()
    assert not any("required" in section for section in (schema, *schema["$defs"].values()))


def test_preferences_are_a_path_or_a_section(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def given(value: str) -> Any:
        return configfile.load(path, [f"align.preferences={value}"]).align.preferences

    assert given("lab/pairs") == "lab/pairs"
    assert [given(own) for own in ("pairs", "data/p.jsonl", "{path: ./p}")] == [
        str(tmp_path / "pairs"),
        str(tmp_path / "data" / "p.jsonl"),
        PreferencesConfig(path=str(tmp_path / "p")),
    ]
    assert given("{path: lab/pairs, split: train_prefs}") == PreferencesConfig(path="lab/pairs", split="train_prefs")
    (tmp_path / "lab" / "pairs").mkdir(parents=True)
    assert given("lab/pairs") == str(tmp_path / "lab" / "pairs")
    with pytest.raises(UserError, match=r"run\.yaml: align\.preferences\.splt: unknown key; did you mean split\?"):
        given("{path: lab/pairs, splt: x}")
    with pytest.raises(UserError, match=r"run\.yaml: align\.preferences\.path: not set; add it$"):
        given("{split: x}")
    with pytest.raises(UserError, match=r"run\.yaml: align\.preferences: .*string.*, or .*section of keys"):
        given("5")

"""`xlr fork` takes over what agrees, and nothing else. `xlr redo` makes a stage again."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import inprocess
from tests.conftest import Cli, assert_refused, tiny_tree
from tests.inprocess import ANNOTATION, digests, inodes, made, with_settings
from xlr import configfile
from xlr.commands import changes, verify
from xlr.errors import UserError
from xlr.leases import lease
from xlr.pipeline import Stage, stages
from xlr.run.context import Context
from xlr.run.files import read_json, remove, sealed, write_json, write_text
from xlr.run.manifests import manifest_path
from xlr.settings.config import Config


@pytest.fixture(scope="module")
def config(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("fork")
    tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    shutil.copytree(tree["prompts"]["path"], folder / "prompts")
    tree["prompts"]["path"] = str(folder / "prompts")
    tree["evaluate"] = {}
    return Config.model_validate(tree)


@pytest.fixture(scope="module")
def old(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return made(config, tmp_path_factory.mktemp("old") / "run")


def state(taken: list[changes.Taken]) -> dict[str, bool | list[str]]:
    return {str(own.stage): own.whole or own.languages for own in taken}


def test_another_training_setting_takes_over_the_whole_annotation(old: Context, config: Config, tmp_path: Path) -> None:
    new = inprocess.opened(with_settings(config, train={"beta": 0.2}), tmp_path / "new")
    taken = changes.fork(old, new)
    assert state(taken) == {"generate 1": True, "score 1": True, "pair 1": True, "train 1": []}
    assert inodes(new.run.path, "iter1/*/*.parquet") == inodes(old.run.path, "iter1/*/*.parquet"), "not by reference"
    assert digests(new) == digests(old)
    assert all(own.seconds for own in taken[:3])
    assert configfile.load(new.run.path).train.beta == 0.2


@pytest.mark.parametrize("language", ["fr", "de"])  # its files come last, or before those that are taken over
def test_another_language_is_made_alone_and_equals_a_run_that_always_had_it(
    language: str, old: Context, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = with_settings(config, languages=["en", language, "es"])
    forked = inprocess.opened(more, tmp_path / "forked")
    taken = changes.fork(old, forked)
    assert state(taken)["generate 1"] == state(taken)["score 1"] == ["en", "es"]
    assert state(taken)["pair 1"] == []
    changes.show(old.run.path, forked.run.path, taken)
    assert "taken over: en, es; the rest is made" in capsys.readouterr().out
    context = made(more, tmp_path / "forked")
    undisturbed = made(more, tmp_path / "undisturbed")
    assert digests(context) == digests(undisturbed)
    for stage in ANNOTATION[:2]:
        own, expected = (read_json(manifest_path(stage.artifact(one).folder)) for one in (context, undisturbed))
        for key in ("facts", "rows", "parts", "files"):
            assert own[key] == expected[key]
    before, after = (inodes(one.run.path, "iter1/*/e[ns]-*.parquet") for one in (old, context))
    assert before == after, "not by reference"
    assert not list((tmp_path / "forked").glob("kept/**/*.parquet"))


@pytest.fixture(scope="module")
def evaluated(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A run with the evaluation of pi^0, on prompts and preferences."""
    folder = tmp_path_factory.mktemp("evaluated")
    config = Config.model_validate(tiny_tree.__wrapped__(tiny_models, folder))  # type: ignore[attr-defined]
    return with_evaluation(config, folder / "run")


def with_evaluation(config: Config, run: Path) -> Context:
    context = inprocess.opened(config, run)
    context.run.create()
    write_text(run / "config.yaml", configfile.dump(context.config))
    evaluation = Stage("evaluate", 0)
    if evaluation.artifact(context).manifest() is None:
        evaluation.module.make(context, 0)
    return inprocess.opened(config, run)


@pytest.mark.parametrize("languages", [["en", "fr", "es"], ["es"]])
def test_an_added_language_is_evaluated_alone_and_equals_a_run_that_always_had_it(
    languages: list[str], evaluated: Context, tmp_path: Path
) -> None:
    changed = with_settings(evaluated.config, languages=languages)
    forked = inprocess.opened(changed, tmp_path / "forked")
    assert state(changes.fork(evaluated, forked))["evaluate 0"] == [lang for lang in ("en", "es") if lang in languages]
    context = with_evaluation(changed, tmp_path / "forked")
    undisturbed = with_evaluation(changed, tmp_path / "undisturbed")
    own, expected = (read_json(manifest_path(one.run.path / "iter0" / "eval")) for one in (context, undisturbed))
    for key in ("facts", "rows", "parts", "files", "digest"):
        assert own[key] == expected[key]
    assert {"responses", "scores", "preferences"} == {name.split("/")[0] for name in own["files"] if "/es-" in name}
    assert inodes(context.run.path, "iter0/eval/*/es-*.parquet") == inodes(
        evaluated.run.path, "iter0/eval/*/es-*.parquet"
    ), "not by reference"
    assert not list((tmp_path / "forked").glob("kept/**/*.parquet"))


def test_the_same_data_in_another_folder_decide_nothing(evaluated: Context, tmp_path: Path) -> None:
    section = evaluated.config.evaluate
    assert section.prompts
    assert section.preferences
    shutil.copytree(section.prompts.path, tmp_path / "prompts")
    shutil.copytree(section.preferences, tmp_path / "preferences")
    prompts = section.prompts.model_dump(mode="json") | {"path": str(tmp_path / "prompts")}
    own = {"prompts": prompts, "preferences": str(tmp_path / "preferences")}
    moved = inprocess.opened(with_settings(evaluated.config, evaluate=own), tmp_path / "moved")
    assert state(changes.fork(evaluated, moved))["evaluate 0"] is True


def test_only_the_language_whose_prompts_changed_is_made_again(old: Context, config: Config, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    shutil.copytree(config.prompts.path, prompts)
    lines = (prompts / "es.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0]) | {"instruction": "¿Qué hora es?"}
    (prompts / "es.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]), encoding="utf-8")
    other = with_settings(config, prompts={"path": str(prompts)})
    taken = changes.fork(old, inprocess.opened(other, tmp_path / "new"))
    assert state(taken)["generate 1"] == ["en"]
    assert state(taken)["score 1"] == ["en"]
    context, undisturbed = made(other, tmp_path / "new"), made(other, tmp_path / "undisturbed")
    assert digests(context) == digests(undisturbed)
    assert digests(context) != digests(old)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"seed": 7}, [[], [], []]),
        ({"generate": {"num_samples": 2}}, [[], [], []]),
        ({"score": {"reward": "multilingual"}}, [True, [], []]),
        ({"pair": {"length_control": False}}, [True, True, []]),
        ({"languages": ["en"]}, [["en"], ["en"], []]),
    ],
)
def test_what_other_settings_decide_is_not_taken_over(
    section: dict[str, Any], expected: list[Any], old: Context, config: Config, tmp_path: Path
) -> None:
    taken = changes.fork(old, inprocess.opened(with_settings(config, **section), tmp_path / "new"))
    assert [state(taken)[str(stage)] for stage in ANNOTATION] == expected


def test_a_fork_that_was_interrupted_is_completed_by_the_next_call(
    old: Context, config: Config, tmp_path: Path
) -> None:
    """It dies before every fifth of its changes of the new folder in turn."""
    more = with_settings(config, languages=["en", "es", "fr"])
    reference = inprocess.opened(more, tmp_path / "reference")
    expected = state(changes.fork(old, reference))
    script = f"""
import sys
from pathlib import Path
from tests import inprocess
from xlr.commands import changes, verify
from xlr import configfile
old = configfile.load({str(old.run.path)!r}, ["run_dir=" + {str(old.run.path)!r}])
more = configfile.load({str(reference.run.path)!r})
changes.fork(inprocess.opened(old, Path({str(old.run.path)!r})), inprocess.opened(more, Path(sys.argv[1])))
"""
    new = tmp_path / "killed"
    crash = {"XLR_CRASH_RUN": new, "XLR_CRASH_SEEN": tmp_path / "seen", "XLR_CRASH_STEP": 5}
    path = os.pathsep.join([str(Path(__file__).parents[1] / "crash"), str(Path(__file__).parents[2])])
    environment = os.environ | {name: str(value) for name, value in crash.items()} | {"PYTHONPATH": path}
    deaths = 0
    while code := subprocess.run([sys.executable, "-c", script, str(new)], env=environment, check=False).returncode:
        assert code == -signal.SIGKILL
        deaths += 1
    assert deaths >= 4
    assert state(changes.fork(old, inprocess.opened(more, new))) == expected
    files = {str(path.relative_to(new)) for path in new.rglob("*") if path.is_file() and "leases" not in path.parts}
    assert files == {
        str(path.relative_to(reference.run.path))
        for path in reference.run.path.rglob("*")
        if path.is_file() and "leases" not in path.parts
    }


def test_kept_languages_that_no_longer_agree_are_made_anew(old: Context, config: Config, tmp_path: Path) -> None:
    """The settings of the fork change before it is run."""
    more = with_settings(config, languages=["en", "es", "fr"])
    changes.fork(old, inprocess.opened(more, tmp_path / "new"))
    other = with_settings(more, generate={"temperature": 0.5})
    remove(tmp_path / "new" / "config.yaml")
    assert digests(made(other, tmp_path / "new")) == digests(made(other, tmp_path / "undisturbed"))


def test_a_damaged_file_is_not_taken_over(old: Context, config: Config, tmp_path: Path) -> None:
    shutil.copytree(old.run.path, tmp_path / "copy")
    copy = inprocess.opened(config, tmp_path / "copy")
    file = tmp_path / "copy" / "iter1" / "responses" / "es-00000.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(
        UserError, match=r"es-00000\.parquet: has changed since it was written .*; `xlr verify .*/copy`"
    ):
        changes.fork(copy, inprocess.opened(config, tmp_path / "new"))


def test_damage_in_kept_languages_is_noticed(old: Context, config: Config, tmp_path: Path) -> None:
    more = with_settings(config, languages=["en", "es", "fr"])
    new = inprocess.opened(more, tmp_path / "new")
    changes.fork(old, new)
    assert list(verify.faults(new)) == []
    file = tmp_path / "new" / "kept" / "iter1" / "responses" / "es-00000.parquet"
    content = file.read_bytes()
    file.unlink()  # it is a link to the file of the other run
    file.write_bytes(content[:-1] + b"x")
    found = [fault for place, fault in verify.faults(inprocess.opened(more, tmp_path / "new")) if place == "generate 1"]
    assert len(found) == 1
    with pytest.raises(
        UserError, match=r"kept/iter1/responses/es-00000\.parquet: has changed .* to make these languages"
    ):
        ANNOTATION[0].module.make(inprocess.opened(more, tmp_path / "new"), 1)
    remove(tmp_path / "new" / "kept" / "iter1" / "responses.manifest.json")
    assert digests(made(more, tmp_path / "new")) == digests(made(more, tmp_path / "undisturbed"))


def test_languages_of_a_run_by_an_earlier_xlr_are_not_known_apart(old: Context, config: Config, tmp_path: Path) -> None:
    """Its manifests have no parts. Whole artefacts are taken over."""
    shutil.copytree(old.run.path, tmp_path / "copy")
    for path in (tmp_path / "copy" / "iter1").glob("*.manifest.json"):
        manifest = read_json(path)
        write_json(path, sealed({name: own for name, own in manifest.items() if name not in ("parts", "seal")}))
    copy = inprocess.opened(config, tmp_path / "copy")
    assert state(changes.fork(copy, inprocess.opened(config, tmp_path / "same")))["score 1"] is True
    more = with_settings(config, languages=["en", "es", "fr"])
    assert state(changes.fork(copy, inprocess.opened(more, tmp_path / "more")))["generate 1"] == []


def test_a_fork_is_refused_where_it_would_mix_or_disturb(
    old: Context, config: Config, tmp_path: Path, cli_here: Cli
) -> None:
    new = tmp_path / "new"
    assert_refused(cli_here("fork", tmp_path / "none", new), "no such run directory")
    assert_refused(cli_here("fork", old.run.path, old.run.path, "train.beta=0.2"), "is the run itself")
    changes.fork(old, inprocess.opened(config, new))
    assert_refused(cli_here("fork", old.run.path, new, "train.beta=0.2"), "holds a run with another configuration")
    with lease.held(old.run.leases, ["iter1/model"]):
        refused = cli_here("fork", old.run.path, tmp_path / "other", "train.beta=0.2")
    assert_refused(refused, "train 1 is running")
    assert not (tmp_path / "other").exists()


def test_a_stage_is_made_again_and_what_follows_is_kept_if_it_comes_out_the_same(
    old: Context, config: Config, tmp_path: Path, cli_here: Cli
) -> None:
    shutil.copytree(old.run.path, tmp_path / "run")
    context = inprocess.opened(config, tmp_path / "run")
    assert_refused(cli_here("redo", tmp_path / "run", "score"), "nobody can be asked here; pass --yes")
    assert_refused(cli_here("redo", tmp_path / "run", "judge", "--yes"), "not a stage of this run")
    asked = cli_here("redo", tmp_path / "run", "score", "--yes")
    assert asked.returncode == 0, asked.stderr
    assert "score 1: is made again\npair 1: is made again if what it reads differs then\n" in asked.stdout
    assert "train" not in asked.stdout.replace(str(tmp_path), "")
    assert not manifest_path(tmp_path / "run" / "iter1" / "scores").exists()
    pairs = (tmp_path / "run" / "iter1" / "pairs.manifest.json").stat().st_mtime_ns
    again = made(config, tmp_path / "run")
    assert digests(again) == digests(old)
    assert (tmp_path / "run" / "iter1" / "pairs.manifest.json").stat().st_mtime_ns == pairs
    assert [str(stage) for stage in stages(context.config)][:3] == [str(stage) for stage in ANNOTATION]

"""Runs that share take over what the others have made, and never make the same artefact twice."""

import multiprocessing
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tests import inprocess
from tests.conftest import Cli, assert_refused, tiny_tree
from tests.inprocess import ANNOTATION, digests, inodes, made, with_settings
from tests.waiting import wait_until
from xlr import configfile, pipeline
from xlr.errors import UserError
from xlr.leases import lease
from xlr.run import sharing
from xlr.run.context import Context
from xlr.run.files import read_json
from xlr.run.manifests import manifest_path
from xlr.settings.config import Config


@pytest.fixture(scope="module")
def config(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("sharing")
    tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    tree["evaluate"] = {}
    return Config.model_validate(tree)


@pytest.fixture(scope="module")
def first(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return made(config, tmp_path_factory.mktemp("sweep") / "first")


def opened(config: Config, run: Path, *places: Path, **sections: Any) -> Context:
    """A run that shares with others."""
    return inprocess.opened(with_settings(config, reuse=[str(place) for place in places], **sections), run)


def finish(context: Context) -> None:
    """Run the stages up to the pairs, as `xlr run --stages` does."""
    with pipeline.holding(context, ANNOTATION):
        pipeline.run_all(context, ANNOTATION)


@pytest.mark.parametrize("place", ["the run", "the folder of runs"])
def test_a_run_takes_over_what_another_has_made_and_makes_the_rest(
    place: str, first: Context, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = first.run.path if place == "the run" else first.run.path.parent
    context = opened(config, tmp_path / "new", shared, pair={"keep": 0.5})
    finish(context)
    printed = capsys.readouterr().out
    assert printed.count(f"taken over from {first.run.path}") == 2
    assert inodes(context.run.path, "iter1/scores/*") == inodes(first.run.path, "iter1/scores/*"), "not by reference"
    alone = made(with_settings(config, pair={"keep": 0.5}), tmp_path / "alone")
    assert digests(context) == digests(alone) != digests(first)


def test_only_the_missing_language_is_made(
    first: Context, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    languages = ["en", "es", "fr"]
    context = opened(config, tmp_path / "new", first.run.path, languages=languages)
    finish(context)
    assert f"iter1/responses: en, es taken over from {first.run.path}" in capsys.readouterr().out
    assert digests(context) == digests(made(with_settings(config, languages=languages), tmp_path / "alone"))


def test_an_interrupted_stage_goes_on_with_the_languages_that_it_began_with(
    first: Context, config: Config, tmp_path: Path
) -> None:
    """Its pieces were planned without those that another run has finished since."""
    languages = ["en", "es", "fr"]
    begun = inprocess.opened(with_settings(config, languages=languages), tmp_path / "new", fail_after=1)
    with pytest.raises(inprocess.StoppedError):
        finish(begun)
    context = opened(config, tmp_path / "new", first.run.path, languages=languages)
    finish(context)
    assert digests(context) == digests(made(with_settings(config, languages=languages), tmp_path / "alone"))


def test_a_damaged_file_of_another_run_is_named_and_made_again(
    first: Context, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(first.run.path, tmp_path / "damaged")
    file = tmp_path / "damaged" / "iter1" / "responses" / "es-00000.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    manifest_path(tmp_path / "damaged" / "iter1" / "scores").write_text("{")
    context = opened(config, tmp_path / "new", tmp_path / "damaged")
    finish(context)
    printed = capsys.readouterr().out
    assert f"iter1/responses: not taken over from {tmp_path}/damaged: {file}: has changed since" in printed
    assert "iter1/scores: not taken over" in printed
    assert digests(context) == digests(first)


def _finish_in_a_process(config: Config, run: Path, place: Path, answers: Any) -> None:
    context = opened(config, run, place)
    finish(context)
    answers.put([read_json(manifest_path(stage.artifact(context).folder))["finished"] for stage in ANNOTATION])


def test_two_runs_of_a_folder_never_make_the_same(config: Config, tmp_path: Path) -> None:
    """Both start at the same time; one makes each artefact, the other takes it over."""
    place = tmp_path / "sweep"
    place.mkdir()
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    runs = [place / "one", place / "other"]
    processes = [spawn.Process(target=_finish_in_a_process, args=(config, run, place, answers)) for run in runs]
    for process in processes:
        process.start()
    found = [answers.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert found[0] == found[1], "an artefact was made twice"
    assert inodes(runs[0], "iter1/*/*.parquet") == inodes(runs[1], "iter1/*/*.parquet")


def test_a_run_waits_for_the_one_that_makes_the_same(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each names only the other."""
    one, other = (
        opened(config, tmp_path / name, tmp_path / place) for name, place in (("one", "other"), ("other", "one"))
    )
    for context in (one, other):
        context.run.create()
    target = ANNOTATION[0].artifact(one)
    entered = threading.Event()

    def wait() -> None:
        with sharing.alone(ANNOTATION[0].artifact(other), other.config.reuse):
            entered.set()

    with sharing.alone(target, one.config.reuse):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(3)
    wait_until(entered.is_set, "the end of the wait", 60)
    waiting.join()
    assert "iter1/responses: waits for process" in capsys.readouterr().out


def test_a_process_of_the_same_run_waits_while_another_takes_over(
    first: Context, config: Config, tmp_path: Path
) -> None:
    """Two jobs of one run start at once: neither fails, and neither works without what the other is taking over."""
    context = opened(config, tmp_path / "new", first.run.path)
    context.run.create()
    entered = threading.Event()

    def start() -> None:
        with pipeline.holding(opened(config, tmp_path / "new", first.run.path), ANNOTATION[2:]):
            entered.set()

    with lease.held(context.run.leases, ["taking/iter1/responses"]):
        waiting = threading.Thread(target=start)
        waiting.start()
        assert not entered.wait(3)
    wait_until(entered.is_set, "the end of the wait", 60)
    waiting.join()
    assert digests(context) == digests(first)


def test_a_stage_that_another_process_makes_is_left_to_it(first: Context, config: Config, tmp_path: Path) -> None:
    context = opened(config, tmp_path / "new", first.run.path)
    context.run.create()
    (context.run.path / "config.yaml").write_text(configfile.dump(context.config), encoding="utf-8")
    with lease.held(context.run.leases, ["iter1/responses"]):
        with pipeline.holding(context, ()):
            pass
        assert not digests(context)


def test_redo_says_which_run_would_give_the_stage_back(
    first: Context, config: Config, tmp_path: Path, cli_here: Cli
) -> None:
    context = opened(config, tmp_path / "new", first.run.path)
    with pipeline.holding(context, ()):
        pass
    refused = cli_here("redo", tmp_path / "new", "score", "--yes")
    assert_refused(refused, f"score 1: {first.run.path} has made the same, and this run would take it over again")


def test_a_run_to_share_with_that_does_not_exist_is_named(config: Config, tmp_path: Path) -> None:
    context = opened(config, tmp_path / "new", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"reuse: .*/nowhere: no such folder"), pipeline.holding(context, ()):
        pass


def test_what_other_settings_decide_has_another_key(config: Config, tmp_path: Path) -> None:
    keys = set()
    for number, section in enumerate(({}, {"seed": 7}, {"generate": {"num_samples": 2}}, {"languages": ["en"]})):
        target = ANNOTATION[0].artifact(opened(config, tmp_path / str(number), **section))  # type: ignore[arg-type]
        keys.add(sharing.key(target, target.input_digests))
    assert len(keys) == 4


def test_reuse_says_what_a_run_has(first: Context, config: Config, tmp_path: Path, cli_here: Cli) -> None:
    context = opened(config, tmp_path / "new", first.run.path)
    with pipeline.holding(context, ()):
        pass
    done = cli_here("reuse", tmp_path / "new")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/new: 3 of 4 stages done\n"), done.stderr


def test_a_run_that_another_needs_is_not_removed(first: Context, config: Config, tmp_path: Path, cli_here: Cli) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(first.run.path, runs / "first")
    needing = opened(config, runs / "second", runs, train={"beta": 0.2})
    needing.run.create()
    (needing.run.path / "config.yaml").write_text(configfile.dump(needing.config), encoding="utf-8")
    refused = cli_here("remove", runs / "first", "--yes")
    assert_refused(refused, f"{runs}/second needs what it has made for generate 1; finish that run, or let it take it")
    assert_refused(cli_here("remove", tmp_path / "none", "--yes"), "no such run directory")
    with lease.held(needing.run.leases, ["iter1/model"]):
        assert_refused(cli_here("remove", runs / "second", "--yes"), "iter1/model is being made (process")
    assert cli_here("reuse", runs / "second").returncode == 0
    removed = cli_here("remove", runs / "first", "--yes")
    assert removed.returncode == 0, removed.stderr
    assert "stay, because other runs share them" in removed.stdout
    assert [path.name for path in runs.iterdir()] == ["second"]
    assert "no faults" in cli_here("verify", runs / "second").stdout

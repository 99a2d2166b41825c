"""A whole sweep with tiny models on the command line: killed in the middle, compared, on a page in a browser."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Cli, assert_refused, tiny_tree, violations
from tests.rows import read_rows
from tests.waiting import wait_until
from xlr.findings.found import AVERAGE
from xlr.records import Response, Score
from xlr.run.files import read_json
from xlr.sweep import comparison, report

VARIANTS = {"loss": {"train.beta": 0.5}, "reward": {"score.reward": "multilingual"}}
RUNS = ("base", *VARIANTS)


def sweep_file(tiny_models: dict[str, Path], folder: Path) -> Path:
    tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    del tree["run_dir"]
    tree["generate"]["batch_size"] = 2  # several pieces
    (folder / "base.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    own = {"base": "base.yaml", "sweep_dir": str(folder / "runs"), "variants": VARIANTS}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    return folder / "sweep.yaml"


@pytest.fixture(scope="module")
def sweep(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep, which was killed while a variant scored and while it trained."""
    path = sweep_file(tiny_models, tmp_path_factory.mktemp("sweep"))
    runs = path.parent / "runs"
    command = [sys.executable, "-m", "xlr", "sweep", "run", str(path)]
    for moment in ("reward/iter1/scores.parts", "reward/iter1/model.*"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        reached: Callable[[], Any] = partial(
            lambda running, wanted: running.poll() is not None or list(runs.glob(wanted)), process, moment
        )
        wait_until(reached, moment, 600)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert "loss's π1 against base's π1: " in result.stdout
    return runs


def manifests(run: Path) -> dict[str, dict[str, Any]]:
    return {str(path.relative_to(run)): read_json(path) for path in run.glob("iter*/*.manifest.json")}


def test_a_sweep_equals_its_runs_one_by_one(sweep: Path, tmp_path: Path, cli_here: Cli) -> None:
    """What was shared is what each variant would have made: the variant runs alone, without the others."""
    config = yaml.safe_load((sweep / "reward" / "config.yaml").read_text(encoding="utf-8"))
    (tmp_path / "alone.yaml").write_text(
        yaml.safe_dump(config | {"reuse": [], "run_dir": str(tmp_path / "alone")}), encoding="utf-8"
    )
    command = [sys.executable, "-m", "xlr", "run", str(tmp_path / "alone.yaml")]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    own, alone = manifests(sweep / "reward"), manifests(tmp_path / "alone")
    assert {name: one["digest"] for name, one in own.items()} == {name: one["digest"] for name, one in alone.items()}


def test_shared_work_was_done_once(sweep: Path) -> None:
    found = {name: manifests(sweep / name) for name in RUNS}
    made = {(name, own["finished"], own["digest"]) for one in found.values() for name, own in one.items()}
    assert len({name for name, *_ in made}) == 6
    once = [name for name, *_ in made]
    assert once.count("iter0/eval.manifest.json") == once.count("iter1/responses.manifest.json") == 1
    assert once.count("iter1/scores.manifest.json") == once.count("iter1/pairs.manifest.json") == 2
    assert once.count("iter1/model.manifest.json") == once.count("iter1/eval.manifest.json") == 3
    files = [run / "iter1" / "responses" / "es-00000.parquet" for run in map(sweep.joinpath, RUNS)]
    assert len({file.stat().st_ino for file in files}) == 1, "copied, not linked"


def test_a_finished_sweep_does_nothing_again(sweep: Path, cli_here: Cli) -> None:
    before = {path: path.stat().st_mtime_ns for path in sweep.rglob("*.manifest.json")}
    shown = cli_here("sweep", "run", sweep, "--dry-run")
    assert "0 stages to make; run by run it would be 0." in shown.stdout
    assert {path: path.stat().st_mtime_ns for path in sweep.rglob("*.manifest.json")} == before
    status = cli_here("sweep", "status", sweep)
    assert status.stdout.count("6 of 6 done") == 3, status.stdout + status.stderr


def test_figures_equal_a_plain_computation(sweep: Path) -> None:
    runs = [report._run(sweep / name) for name in RUNS]
    base, *others = comparison.sides(runs)
    answers = {
        name: {(row.lang, row.id): row for row in read_rows(sweep / name / "iter1" / "eval" / "responses", Response)}
        for name in RUNS
    }
    scores = {
        name: {(row.lang, row.id): row for row in read_rows(sweep / name / "iter1" / "eval" / "scores", Score)}
        for name in RUNS
    }
    complete, in_language = comparison.measures(base, others)
    for name in VARIANTS:
        for lang in ("en", "es"):
            keys = [key for key in answers["base"] if key[0] == lang]
            changes = [
                (answers[name][key].finish_reason == "stop") - (answers["base"][key].finish_reason == "stop")
                for key in keys
            ]
            assert complete.changes[name][lang].value == pytest.approx(sum(changes) / len(keys))
            assert complete.changes[name][lang].count == len(keys) == 2
            right = [
                (key in scores[name] and scores[name][key].detected_lang == lang)
                - (key in scores["base"] and scores["base"][key].detected_lang == lang)
                for key in keys
            ]
            assert in_language.changes[name][lang].value == pytest.approx(sum(right) / len(keys))
    for name, conclusion in comparison.conclusions(base, others):
        for finding in conclusion.findings:
            langs = ("en", "es") if finding.lang == AVERAGE else (finding.lang,)
            both = [key for key in scores["base"] if key in scores[name] and key[0] in langs]
            signs = [
                (scores[name][key].reward > scores["base"][key].reward)
                - (scores[name][key].reward < scores["base"][key].reward)
                for key in both
            ]
            if finding.lang != AVERAGE or len(both) == 4:
                assert finding.value == pytest.approx(100 * sum(signs) / len(both))


def test_variants_are_corrected_together(sweep: Path) -> None:
    """A p-value of the report is at least that of its variant alone."""
    runs = [report._run(sweep / name) for name in RUNS]
    base, *others = comparison.sides(runs)
    together = dict(comparison.conclusions(base, others))
    for side in others:
        alone = dict(comparison.conclusions(base, [side]))[side.run.name]
        for own, corrected in zip(alone.findings, together[side.run.name].findings, strict=True):
            assert own.lang == corrected.lang
            assert corrected.p >= own.p


def test_costs_count_shared_work_once(sweep: Path) -> None:
    runs = [report._run(sweep / name) for name in RUNS]
    unit, found = comparison.costs([run.found for run in runs])
    assert unit == "CPU-hours"
    hours = {
        (name, key, own["finished"]): own["seconds"] * own["processors"]["cpus"] / 3600
        for name in RUNS
        for key, own in manifests(sweep / name).items()
    }
    assert sum(one.alone for one in found) == pytest.approx(sum(hours.values()))
    once = {(key, finished): value for (_, key, finished), value in hours.items()}
    assert sum(one.added for one in found) == pytest.approx(sum(once.values()))
    assert sum(one.added for one in found) < 0.8 * sum(one.alone for one in found)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_the_page_is_accessible_and_fits_the_screen(sweep: Path, browser: Any, width: int, scheme: str) -> None:
    trouble: list[str] = []
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True) as opened:
        page = opened.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("request", lambda request: trouble.append(request.url))
        page.goto((sweep / "report.html").as_uri())
        assert trouble == [(sweep / "report.html").as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert violations(page) == []
        assert page.locator(".sentence").count() == len(VARIANTS)


def test_a_variant_that_fails_stops_none_of_the_others(sweep: Path, tmp_path: Path, cli: Cli) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(sweep, copy)
    recorded = yaml.safe_load((copy / "sweep.yaml").read_text(encoding="utf-8"))
    (copy / "sweep.yaml").write_text(yaml.safe_dump(recorded | {"sweep_dir": str(copy)}), encoding="utf-8")
    for name in ("loss", "reward"):
        (copy / name / "iter1" / "eval.manifest.json").unlink()
    model = copy / "loss" / "iter1" / "model" / "model.safetensors"
    content = model.read_bytes()
    model.unlink()
    model.write_bytes(content[:-1] + b"x")
    assert_refused(cli("sweep", "run", copy), "failed: loss; see above, then start the sweep again")
    assert (copy / "reward" / "iter1" / "eval.manifest.json").is_file()
    assert json.loads((sweep / "loss" / "iter1" / "eval.manifest.json").read_text())  # the original is untouched

"""Whole runs with tiny models on the command line: complete, reproducible, and the same after kill -9."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Cli, assert_refused
from tests.rows import read_rows, reseal
from tests.waiting import descendants, wait_until
from xlr.cluster.preemption import EXIT_CODE
from xlr.records import Pair, Response, Score
from xlr.run.files import read_json
from xlr.run.rows import write_rows

ARTEFACTS = ("iter0/eval", "iter1/responses", "iter1/scores", "iter1/pairs", "iter1/model", "iter1/eval")


@pytest.fixture(scope="module")
def finished(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished run of one iteration, and its configuration."""
    import yaml

    from tests.conftest import tiny_tree

    folder = tmp_path_factory.mktemp("finished")
    tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = [sys.executable, "-m", "xlr", "run", str(folder / "run.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return folder, tree


def digests(run: Path) -> dict[str, str]:
    return {name: read_json(run / f"{name}.manifest.json")["digest"] for name in ARTEFACTS}


def test_every_stage_writes_the_expected_rows(finished: tuple[Path, dict[str, Any]]) -> None:
    run = finished[0] / "run"
    responses = read_rows(run / "iter1" / "responses", Response)
    assert len(responses) == 2 * 4 * 3
    assert len({(row.lang, row.id, row.sample) for row in responses}) == len(responses)
    assert {row.finish_reason for row in responses} <= {"stop", "length"}
    scores = read_rows(run / "iter1" / "scores", Score)
    assert all(row.reward == row.logp_policy - row.logp_reference for row in scores)
    assert all(row.num_chars == len(row.response) for row in scores)
    pairs = read_rows(run / "iter1" / "pairs", Pair)
    assert pairs
    for pair in pairs:
        assert pair.chosen_score > pair.rejected_score
        assert [turn["role"] for turn in (*pair.prompt, *pair.chosen, *pair.rejected)] == ["user", *["assistant"] * 2]


def test_rows_are_read_by_other_tools(finished: tuple[Path, dict[str, Any]], cli_here: Cli) -> None:
    """Whole folders by pandas, and JSON lines in any locale."""
    import pandas

    run = finished[0] / "run"
    for name, row_type in (("responses", Response), ("scores", Score), ("pairs", Pair)):
        rows = read_rows(run / "iter1" / name, row_type)
        assert list(pandas.read_parquet(run / "iter1" / name)["id"]) == [row.id for row in rows]
        printed = cli_here("export", run, name, LC_ALL="C")
        assert printed.returncode == 0, printed.stderr
        assert [json.loads(line) for line in printed.stdout.splitlines()] == json.loads(
            json.dumps([asdict(row) for row in rows], default=list)  # token ids are arrays
        )
    assert_refused(cli_here("export", run, "model"), "choose one of responses, translations, scores, pairs")
    assert_refused(cli_here("export", run, "pairs", "-i", "7"), "iter7/pairs: not finished")


def test_every_stage_counts_its_tokens(finished: tuple[Path, dict[str, Any]]) -> None:
    iteration = finished[0] / "run" / "iter1"
    tokens = {
        name: read_json(iteration / f"{name}.manifest.json")["tokens"]
        for name in ("responses", "scores", "pairs", "model")
    }
    responses, scores = read_rows(iteration / "responses", Response), read_rows(iteration / "scores", Score)
    metrics = [json.loads(line) for line in (iteration / "metrics.jsonl").read_text().splitlines()]
    assert tokens == {
        "responses": {"sampled": sum(len(row.token_ids) for row in responses)},
        "scores": {"scored": sum(row.num_tokens for row in scores)},
        "pairs": {},
        "model": {"trained on": sum(row["num_tokens"] for row in metrics)},
    }


def test_a_stage_that_does_not_exist_is_refused(finished: tuple[Path, dict[str, Any]], cli_here: Cli) -> None:
    run = finished[0] / "run"
    assert_refused(cli_here("run", run, "--stages", "generate,bogus"), "bogus 1: not a stage of this run")
    assert_refused(cli_here("logs", run, "bogus"), "bogus 1")


def test_a_certificate_that_is_refused_writes_nothing(finished: tuple[Path, dict[str, Any]], cli_here: Cli) -> None:
    run = finished[0] / "run"
    before = (run / "config.yaml").read_bytes()
    assert_refused(cli_here("certify", run, "train.beta=0.2", "--iteration", 9), "--iteration 9")
    assert (run / "config.yaml").read_bytes() == before


def test_report_and_status_show_the_run(finished: tuple[Path, dict[str, Any]], cli_here: Cli) -> None:
    run = finished[0] / "run"
    report = read_json(run / "report.json")
    for iteration in ("0", "1"):
        evaluation = report["iterations"][iteration]["evaluation"]
        assert set(evaluation["languages"]) == {"en", "es"}
        assert {lang: list(modes) for lang, modes in evaluation["preferences"].items()} == {
            "en": ["multilingual"],
            "es": ["crosslingual", "multilingual"],
        }
        assert evaluation["preferences"]["es"]["crosslingual"]["pairs"] == 4
    assert report["iterations"]["0"]["evaluation"]["languages"]["en"]["reward_wins"] == 0.5
    result = cli_here("status", run, COLUMNS="120")
    assert result.returncode == 0
    assert result.stdout.count("done") == 6
    manifest = read_json(run / "iter1" / "scores.manifest.json")
    assert {"formula", "languages", "dropped"} <= set(manifest["facts"])
    assert {"torch", "ray", "xlr"} <= set(manifest["versions"])


def test_running_again_does_nothing_and_takes_seconds(finished: tuple[Path, dict[str, Any]], cli_here: Cli) -> None:
    run = finished[0] / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")}
    begun = time.monotonic()
    result = cli_here("run", run)
    assert result.returncode == 0
    assert result.stdout.count("done already") == 6
    assert time.monotonic() - begun < 30
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")} == before


def test_the_same_seed_gives_the_same_run_from_another_folder_and_locale(
    finished: tuple[Path, dict[str, Any]], cli_here: Cli, tmp_path: Path
) -> None:
    """Artefacts have the same bytes with one actor or two, with both models in memory or one at a time, stage by stage
    or in one command, and in a C locale."""
    source, target = finished[0] / "run.yaml", f"run_dir={tmp_path / 'other'}"
    two = ["ray.actors=2", "ray.cpus_per_actor=1", "ray.one_model_at_a_time=true", target]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = cli_here("generate", source, *two, cwd=tmp_path, **plain)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "other"
    for stage in ("score", "pair", "train"):
        result = cli_here(stage, run, cwd=tmp_path, **plain)
        assert result.returncode == 0, result.stderr
    for iteration in (0, 1):
        assert cli_here("evaluate", run, "--iteration", iteration).returncode == 0
    assert digests(run) == digests(finished[0] / "run")
    report = cli_here("report", run, "--tables", cwd=tmp_path, COLUMNS="120", **plain)
    assert report.returncode == 0, report.stderr
    assert "Held-out prompts" in report.stdout


@pytest.mark.parametrize("reward", ["multilingual", "translate"])
def test_the_other_reward_modes_run(
    reward: str, finished: tuple[Path, dict[str, Any]], cli_here: Cli, tmp_path: Path
) -> None:
    target = [f"run_dir={tmp_path / 'mode'}", f"score.reward={reward}"]
    for stage in ("generate", "score", "pair"):
        result = cli_here(stage, finished[0] / "run.yaml", *target)
        assert result.returncode == 0, result.stderr
    scores = read_rows(tmp_path / "mode" / "iter1" / "scores", Score)
    if reward == "translate":
        assert {row.lang for row in scores} == {"es"}
        assert any(row.scored_text != row.response for row in scores)
    else:
        assert {row.lang for row in scores} == {"en", "es"}
        by_key = {
            (row.lang, row.id, row.sample): row for row in read_rows(finished[0] / "run" / "iter1" / "scores", Score)
        }
        english = [row for row in scores if row.lang == "en"]
        assert all(by_key[row.lang, row.id, row.sample].reward == pytest.approx(row.reward) for row in english)


def test_filters_keep_flawed_responses_out_of_the_pairs(
    finished: tuple[Path, dict[str, Any]], cli_here: Cli, tmp_path: Path
) -> None:
    """The responses to one Spanish prompt have no flaws and all others are truncated, so only one pair is left."""
    run = tmp_path / "run"
    shutil.copytree(finished[0] / "run", run, ignore=shutil.ignore_patterns("pairs*", "model*", "eval*"))
    scores = read_rows(run / "iter1" / "scores", Score)
    first = next(row.id for row in scores if row.lang == "es")
    flawless = {"finish_reason": "stop", "detected_lang": "es", "repetition": 0.0}
    rows = [
        replace(row, finish_reason="length") if (row.lang, row.id) != ("es", first) else replace(row, **flawless)
        for row in scores
    ]
    for path in (run / "iter1" / "scores").glob("*.parquet"):
        lang = path.name.split("-")[0]
        write_rows(path, Score, [row for row in rows if row.lang == lang])
    reseal(run / "iter1" / "scores")
    filters = "pair.filters=[truncated, repeated, wrong_language, duplicate]"
    result = cli_here("pair", run, f"run_dir={run}", filters)
    assert result.returncode == 0, result.stderr
    assert [(pair.lang, pair.id) for pair in read_rows(run / "iter1" / "pairs", Pair)] == [("es", first)]
    facts = read_json(run / "iter1" / "pairs.manifest.json")["facts"]
    english = sum(row.lang == "en" for row in rows)
    assert facts["en"]["pairs"] == 0
    assert facts["en"]["filtered"]["truncated"] == english
    assert facts["en"]["dropped"] == {"no candidate left": 4}
    report = cli_here("report", run, "--tables", COLUMNS="120")
    assert report.returncode == 0, report.stderr
    assert "Sampled responses" in report.stdout


def test_artefacts_are_the_same_after_kill_9_at_any_moment(
    finished: tuple[Path, dict[str, Any]], cli_here: Cli, tmp_path: Path
) -> None:
    """The run is killed in different stages and restarted until it is finished."""
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "xlr", "run", str(finished[0] / "run.yaml")]
    command += [f"run_dir={run}", "train.save_steps=1"]
    moments = [
        "iter0/eval.responses",
        "iter0/eval.preferences/**/*.parquet",
        "iter1/responses.parts/**/000001.parquet",
        "iter1/scores.parts",
        "iter1/model.*",
    ]
    seen: dict[Path, int] = {}
    for moment in moments:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        reached = partial(lambda running, wanted: running.poll() is not None or list(run.glob(wanted)), process, moment)
        wait_until(reached, moment)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for path, modified in seen.items():
            assert path.stat().st_mtime_ns == modified, f"{path} was made twice"
        seen = {path: path.stat().st_mtime_ns for path in run.rglob("*.manifest.json")}
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert digests(run) == digests(finished[0] / "run")
    assert not list(run.rglob("*.tmp")) + list(run.rglob("*.parts"))


def test_an_actor_that_is_killed_is_replaced(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The worker process is killed while it samples. Ray restarts it, and the rows are the same."""
    command = [sys.executable, "-m", "xlr", "generate", str(finished[0] / "run.yaml")]
    command += [f"run_dir={tmp_path / 'run'}", "generate.batch_size=2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "run" / "iter1" / "responses.parts"
    wait_until(lambda: list(parts.rglob("*.parquet")), "the first piece")
    os.kill(worker_of(process.pid), signal.SIGKILL)
    assert process.wait(timeout=300) == 0, process.stderr and process.stderr.read()
    expected = read_rows(finished[0] / "run" / "iter1" / "responses", Response)
    assert read_rows(tmp_path / "run" / "iter1" / "responses", Response) == expected


def test_a_worker_that_hangs_is_killed_and_another_does_its_batch(
    finished: tuple[Path, dict[str, Any]], cli_here: Cli, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "xlr", "generate", str(finished[0] / "run.yaml")]
    command += [f"run_dir={tmp_path / 'run'}", "generate.batch_size=2", "ray.task_minutes=0.3"]
    command += ["ray.actors=2", "ray.cpus_per_actor=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    parts = tmp_path / "run" / "iter1" / "responses.parts"
    wait_until(lambda: list(parts.rglob("*.parquet")), "the first piece")
    os.kill(worker_of(process.pid), signal.SIGSTOP)
    wait_until((parts / "progress.json").is_file, "the progress that the status reads")
    status = cli_here("status", tmp_path / "run", COLUMNS="120").stdout
    assert re.search(r"generate: \d+/24 responses, .* tokens/s, .* left", status), status
    assert re.search(r"en \d+/12   es \d+/12\n  \S+: \d+ tasks, computing \d+ % of the time", status), status
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "one task took more than ray.task_minutes=0.3" in said
    assert "workers lost: 1" in said
    assert re.search(r"tokenise .* write .* load .* compute .* wait .* all", said), said
    expected = read_rows(finished[0] / "run" / "iter1" / "responses", Response)
    assert read_rows(tmp_path / "run" / "iter1" / "responses", Response) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stage_that_a_signal_ends_exits_with_code_75(
    number: int, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "xlr", "run", str(finished[0] / "run.yaml")]
    command += [f"run_dir={tmp_path / 'run'}", "generate.batch_size=2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "run" / "iter1" / "responses.parts"
    wait_until(lambda: list(parts.rglob("*.parquet")), "the first piece")
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    assert process.wait(timeout=60) == EXIT_CODE
    said = process.stderr.read() if process.stderr else ""
    assert f"ended by {signal.Signals(number).name}; finished work is kept" in said
    assert "Traceback" not in said
    assert not psutil.wait_procs(workers, timeout=30)[1], "workers are still running"
    pieces = list(parts.rglob("*.parquet"))
    assert pieces
    assert not list((tmp_path / "run").rglob("*.tmp"))


def worker_of(pid: int) -> int:
    """The Ray worker among a process's descendants."""
    return descendants(pid, lambda child: child.name().startswith("ray::RemoteWorker"))[0].pid


def test_a_second_xlr_on_the_same_artefact_is_refused(
    finished: tuple[Path, dict[str, Any]], cli_here: Cli, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "xlr", "generate", str(finished[0] / "run.yaml"), f"run_dir={tmp_path / 'run'}"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    lease = tmp_path / "run" / "leases" / "iter1" / "responses" / "000001"
    wait_until(lambda: lease.is_file() and lease.read_text(), "the lease")
    wait_until((tmp_path / "run" / "config.yaml").is_file, "the recorded configuration")
    second = cli_here(*command[3:])
    assert second.returncode == 2
    assert f"iter1/responses is in use by another xlr (process {first.pid}" in second.stderr
    beside = cli_here("pair", *command[4:], "train.beta=0.2")
    assert beside.returncode == 2
    assert "differs from this configuration, and generate 1 is running with the recorded one" in beside.stderr
    assert first.wait(timeout=300) == 0


def test_raising_the_iterations_continues_and_changing_a_setting_is_refused(
    finished: tuple[Path, dict[str, Any]], cli_here: Cli
) -> None:
    run = finished[0] / "run"
    refused = cli_here("run", run, "generate.temperature=0.5")
    assert refused.returncode == 2
    assert "generate.temperature was 0.9 and is now 0.5" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert read_json(run / "iter1" / "responses.manifest.json")["settings"]["generate.temperature"] == 0.9
    own = ("generate.temperature=[0.9, 0.5]", "prompts.limit=null", 'prompts.slice=[":4", "1:3"]')
    longer = cli_here("generate", run, "iterations=2", *own, "--iteration", 2)
    assert longer.returncode == 0, longer.stderr
    rows = read_rows(run / "iter2" / "responses", Response)
    assert len(rows) == 2 * 2 * 3
    before = read_rows(run / "iter1" / "responses", Response)
    english = list(dict.fromkeys(row.id for row in before if row.lang == rows[0].lang))
    assert {row.id for row in rows} == set(english[1:3])
    assert read_json(run / "iter2" / "responses.manifest.json")["settings"]["generate.temperature"] == 0.5

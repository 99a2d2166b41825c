"""`xlr certify` with tiny models: killed and resumed, compared with the scores of the run, and bad input."""

import html
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import Cli, assert_refused
from tests.rows import read_rows
from tests.waiting import wait_until
from xlr.certificate.certificate import choose_ids
from xlr.records import Prompt, Response, Score
from xlr.run.files import read_json
from xlr.run.rows import write_rows

NAME = "certify-translate-3-3-en-es"
SIZE = ("--prompts", "3", "--samples", "3")
COMMAND = [sys.executable, "-m", "xlr"]
Found = dict[str, Any]


@pytest.fixture(scope="module")
def run(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory in which nothing is there but its configuration. Its questions have answers that are a guess."""
    from tests.conftest import tiny_tree

    folder = tmp_path_factory.mktemp("certified")
    tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    questions = folder / "questions"
    questions.mkdir()
    for lang in ("en", "es"):
        rows = [{"id": str(number), "instruction": f"{number} + 1?", "answer": str(number)} for number in range(10)]
        (questions / f"{lang}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    tree["evaluate"]["checked"] = {"path": str(questions), "max_new_tokens": 4}
    tree["score"]["reward"] = "translate"
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def certified(run: Path) -> Found:
    """A certificate that was killed after the translations. They were marked before it continued."""
    command, iteration = [*COMMAND, "certify", str(run), *SIZE, "--json"], run.parent / "run" / "iter1"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(iteration.glob(f"{NAME}.translate.parts/plan.json")), "the translations")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (iteration / f"{NAME}.manifest.json").exists()
    for piece in iteration.glob(f"{NAME}.translate.translations/*.parquet"):
        rows = read_rows(piece, Response)
        kept = [replace(row, response=f"kept {row.response}") for row in rows]
        write_rows(piece, Response, kept, pq.read_schema(piece).metadata[b"xlr.stamp"].decode())
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def candidates(found: Found, lang: str) -> dict[tuple[str, int], dict[str, Any]]:
    prompts = found["languages"][lang]["prompts"]
    return {(prompt["id"], row["sample"]): row for prompt in prompts for row in prompt["candidates"]}


def test_all_candidates_of_the_same_prompts_have_their_rewards(certified: Found) -> None:
    for lang, modes in (("en", {"crosslingual"}), ("es", {"crosslingual", "multilingual", "translate"})):
        own = candidates(certified, lang)
        assert len(own) == 3 * 3
        assert set(own) == set(candidates(certified, "en"))
        for row in own.values():
            assert row["chars"] == len(row["response"])
            assert set(row["rewards"]) == modes
    agreement = certified["languages"]["es"]["agreement"]
    assert [own["candidate_pairs"] for own in agreement] == [9, 9, 9]
    assert not certified["languages"]["en"]["agreement"]


def test_all_evidence_is_there(certified: Found) -> None:
    for lang, own in certified["languages"].items():
        assert own["verdict"]["decision"] in {"go", "go with", "do not", "not clear"}
        modes = {"multilingual"} if lang == "en" else {"crosslingual", "multilingual", "translate"}
        assert {mode: facts["pairs"] for mode, facts in own["preferences"].items()} == dict.fromkeys(modes, 4)
        assert set(own["checked"]) == {"crosslingual", "multilingual"}
        assert all(facts["answers"] == 9 for facts in own["checked"].values())
    precision = certified["languages"]["es"]["precision"]
    assert precision["precisions"] == ["float32", "bfloat16"]
    assert precision["responses"] == 3 * 3
    assert precision["noise"] > 0
    assert certified["languages"]["en"]["precision"] is None  # translate leaves English out
    assert certified["cost"]["sampled"] == pytest.approx(18 / 24)


def test_the_log_ratios_of_tokens_sum_to_the_reward(certified: Found) -> None:
    for lang, own in certified["languages"].items():
        assert [found["chosen"] for found in own["tokens"]] == [True, False]
        for found in own["tokens"]:
            row = candidates(certified, lang)[found["id"], found["sample"]]
            reward = row["rewards"]["crosslingual"]
            assert sum(ratio for _, ratio in found["pieces"]) == pytest.approx(reward, abs=1e-3)
            assert "".join(text for text, _ in found["pieces"][:-1]) == row["response"]
            assert found["pieces"][-1][0] == " ■"


def test_translations_from_before_the_kill_are_reused(certified: Found) -> None:
    assert all(row["translation"].startswith("kept ") for row in candidates(certified, "es").values())


def test_a_second_call_computes_nothing(run: Path, certified: Found, cli_here: Cli) -> None:
    folder = run.parent / "run" / "iter1" / NAME
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    begun = time.monotonic()
    result = cli_here("certify", run.parent / "run", *SIZE, COLUMNS="80")
    assert time.monotonic() - begun < 30
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not list(folder.parent.glob(f"{NAME}.*/"))
    assert read_json(folder.with_name(f"{NAME}.json")) == certified
    for fact in certified["languages"]["es"]["verdict"]["remarks"]:
        assert fact["text"] in " ".join(result.stdout.split())
        assert fact["text"] in folder.with_name(f"{NAME}.md").read_text(encoding="utf-8")


def test_responses_and_rewards_are_those_of_the_run(run: Path, certified: Found, cli_here: Cli) -> None:
    folder = run.parent / "sampled"
    plain = (f"run_dir={folder}", "score.reward=crosslingual")
    result = cli_here("run", run, "--stages", "generate,score", *plain)
    assert result.returncode == 0, result.stderr
    shown = candidates(certified, "es") | {("en", *key): row for key, row in candidates(certified, "en").items()}
    scores = [row for row in read_rows(folder / "iter1" / "scores", Score) if (row.id, row.sample) in shown]
    assert len(scores) == 2 * 3 * 3
    for row in scores:
        own = shown[("en", row.id, row.sample) if row.lang == "en" else (row.id, row.sample)]
        assert own["response"] == row.response
        assert own["rewards"]["crosslingual"] == pytest.approx(row.reward, abs=1e-4)
        assert own["language"] == row.detected_lang


def test_another_reward_has_its_own_certificate(run: Path, certified: Found, cli_here: Cli) -> None:
    """Settings of pairs may be lists by iteration: the certificate takes the values of its iteration."""
    folder = run.parent / "run"
    other = ("score.reward=multilingual", "pair.upper_bound=[null]", "pair.length_control=[false]")
    result = cli_here("certify", run, f"run_dir={run.parent / 'other'}", *SIZE, *other, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["reward"] == "multilingual"
    assert set(found["languages"]["es"]["modes"]) == {"crosslingual", "multilingual"}
    assert found["languages"]["en"]["precision"]["responses"] == 9
    assert not (run.parent / "other" / "iter1" / NAME).exists()
    assert (folder / "iter1" / NAME).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iteration", "0"], "--iteration 0: this run samples responses in iterations 1 to 1"),
        (["--iteration", "2"], "--iteration 2: this run samples responses in iterations 1 to 1"),
        (["--languages", "es,ru"], "--languages: 'ru' is not a language of this run; choose from en, es"),
        (["--languages", ""], 'error: "" is no language tag of BCP 47'),
        (["generate.temperature=0.5"], "generate.temperature was 0.9 and is now 0.5"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str], message: str, run: Path, certified: Found, cli_here: Cli
) -> None:
    assert_refused(cli_here("certify", run, *SIZE, *arguments), message)


def test_a_policy_that_is_not_there_is_named(cli_here: Cli, run: Path, tmp_path: Path) -> None:
    refused = cli_here("certify", run, f"run_dir={tmp_path / 'new'}", "iterations=2", "--iteration", 2)
    assert_refused(refused, "run `xlr train")


def test_prompts_are_in_all_languages_and_evenly_spaced() -> None:
    def prompts(lang: str, numbers: list[int]) -> list[Prompt]:
        return [Prompt(f"q{number}", lang, "?") for number in numbers]

    table = {"en": prompts("en", list(range(100))), "es": prompts("es", list(range(0, 100, 2)))}
    assert choose_ids(table, ["es"], 5) == ["q10", "q30", "q50", "q70", "q90"]
    assert choose_ids(table, ["es"], 1) == ["q50"]
    assert choose_ids(table, ["en", "es"], 500) == [f"q{number}" for number in range(0, 100, 2)]


def test_the_report_shows_verdicts_and_tokens(run: Path, certified: Found, cli_here: Cli) -> None:
    folder = run.parent / "run"
    result = cli_here("report", folder)
    assert result.returncode == 0, result.stderr
    found = read_json(folder / "report.json")["certificates"]
    assert {lang: own["verdict"] for lang, own in found.items()} == {
        lang: own["verdict"] for lang, own in certified["languages"].items()
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "May the reward be trusted?" in page
    for own in certified["languages"].values():
        assert f'">{own["verdict"]["decision"]}' in page
        assert html.escape(own["verdict"]["remarks"][0]["text"], quote=False) in html.unescape(page)

"""`xlr inspect` with tiny models: killed and resumed, compared with the scores and pairs of the run, and bad input."""

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
from xlr.inspection.inspection import choose_ids
from xlr.records import Pair, Prompt, Response, Score
from xlr.run.files import read_json
from xlr.run.rows import write_rows

NAME = "inspect-3-en-es"
COMMAND = [sys.executable, "-m", "xlr"]
Found = dict[str, Any]


@pytest.fixture(scope="module")
def sampled(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has responses only."""
    from tests.conftest import tiny_tree

    folder = tmp_path_factory.mktemp("sampled")
    tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    result = subprocess.run([*COMMAND, "generate", str(folder / "run.yaml")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def inspected(sampled: Path) -> Found:
    """The result of an inspection that was killed after the translations. They were marked before it continued."""
    command = [*COMMAND, "inspect", str(sampled), "--prompts", "3", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(sampled.glob(f"iter1/{NAME}.translate.parts/plan.json")), "the translations")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (sampled / "iter1" / f"{NAME}.manifest.json").exists()
    for piece in sampled.glob(f"iter1/{NAME}.translate.translations/*.parquet"):
        rows = read_rows(piece, Response)
        kept = [replace(row, response=f"kept {row.response}") for row in rows]
        write_rows(piece, Response, kept, pq.read_schema(piece).metadata[b"xlr.stamp"].decode())
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def candidates(found: Found, lang: str) -> dict[tuple[str, int], dict[str, Any]]:
    prompts = found["languages"][lang]["prompts"]
    return {(prompt["id"], row["sample"]): row for prompt in prompts for row in prompt["candidates"]}


def test_all_candidates_of_the_same_prompts_have_their_rewards(sampled: Path, inspected: Found) -> None:
    responses = {(row.lang, row.id, row.sample): row for row in read_rows(sampled / "iter1" / "responses", Response)}
    for lang, modes in (("en", {"crosslingual"}), ("es", {"crosslingual", "multilingual", "translate"})):
        own = candidates(inspected, lang)
        assert len(own) == 3 * 3
        assert set(own) == set(candidates(inspected, "en"))
        for (prompt, sample), row in own.items():
            assert row["response"] == responses[lang, prompt, sample].response
            assert row["chars"] == len(row["response"])
            assert set(row["rewards"]) == modes
    agreement = inspected["languages"]["es"]["agreement"]
    assert [own["candidate_pairs"] for own in agreement] == [9, 9, 9]
    assert not inspected["languages"]["en"]["agreement"]


def test_translations_from_before_the_kill_are_reused(inspected: Found) -> None:
    assert all(row["translation"].startswith("kept ") for row in candidates(inspected, "es").values())


def test_a_second_call_computes_nothing(sampled: Path, inspected: Found, cli_here: Cli) -> None:
    folder = sampled / "iter1" / NAME
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    begun = time.monotonic()
    result = cli_here("inspect", sampled, "--prompts", 3, COLUMNS="80")
    assert time.monotonic() - begun < 30
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not list(folder.parent.glob(f"{NAME}.*/"))
    assert read_json(folder.with_name(f"{NAME}.json")) == inspected
    for fact in inspected["languages"]["es"]["verdict"]:
        assert fact["text"] in " ".join(result.stdout.split())
        assert fact["text"] in folder.with_name(f"{NAME}.md").read_text(encoding="utf-8")


def test_rewards_and_choices_are_those_of_the_scores_and_pairs_of_the_run(
    sampled: Path, inspected: Found, cli_here: Cli
) -> None:
    result = cli_here("run", sampled, "--stages", "score,pair")
    assert result.returncode == 0, result.stderr
    shown = candidates(inspected, "es") | {("en", *key): row for key, row in candidates(inspected, "en").items()}
    scores = [row for row in read_rows(sampled / "iter1" / "scores", Score) if (row.id, row.sample) in shown]
    assert len(scores) == 2 * 3 * 3
    for row in scores:
        own = shown[("en", row.id, row.sample) if row.lang == "en" else (row.id, row.sample)]
        assert own["rewards"]["crosslingual"] == pytest.approx(row.reward, abs=1e-4)
        assert own["language"] == row.detected_lang
    again = json.loads(cli_here("inspect", sampled, "--prompts", 3, "--json").stdout)
    alpha = read_json(sampled / "iter1" / "pairs.manifest.json")["facts"]["es"]["alpha"]
    modes = again["languages"]["es"]["modes"]
    assert (modes["crosslingual"]["alpha"], modes["crosslingual"]["alpha_of"]) == (alpha, "pairs")
    assert modes["multilingual"]["alpha_of"] == "candidates"
    pairs = {pair.id: pair for pair in read_rows(sampled / "iter1" / "pairs", Pair) if pair.lang == "es"}
    for (prompt, _), row in candidates(again, "es").items():
        for side, by in (("chosen", "chosen_by"), ("rejected", "rejected_by")):
            if "crosslingual" in row[by]:
                assert getattr(pairs[prompt], side)[0]["content"] == row["response"]
    assert sum("crosslingual" in row["chosen_by"] for row in candidates(again, "es").values()) == 3


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
def test_bad_arguments_are_refused(arguments: list[str], message: str, sampled: Path, cli_here: Cli) -> None:
    assert_refused(cli_here("inspect", sampled, *arguments), message)


def test_without_responses_the_command_that_makes_them_is_named(
    cli_here: Cli, tiny_tree: dict[str, Any], write_config: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert_refused(cli_here("inspect", write_config(tiny_tree)), f"run `xlr generate {run} --iteration 1` first")


def test_prompts_are_in_all_languages_and_evenly_spaced() -> None:
    def prompts(lang: str, numbers: list[int]) -> list[Prompt]:
        return [Prompt(f"q{number}", lang, "?") for number in numbers]

    table = {"en": prompts("en", list(range(100))), "es": prompts("es", list(range(0, 100, 2)))}
    assert choose_ids(table, ["es"], 5) == ["q10", "q30", "q50", "q70", "q90"]
    assert choose_ids(table, ["es"], 1) == ["q50"]
    assert choose_ids(table, ["en", "es"], 500) == [f"q{number}" for number in range(0, 100, 2)]

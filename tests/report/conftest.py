"""A finished run for the tests of the report."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import tiny_tree
from tests.rows import read_rows, reseal
from xlr import configfile
from xlr.evaluation import annotations, winrates
from xlr.findings.collect import collect
from xlr.findings.found import Found
from xlr.records import Pair, Response
from xlr.run.directory import RunDir
from xlr.run.files import read_json, write_json
from xlr.run.manifests import manifest_path
from xlr.run.rows import write_rows
from xlr.settings.config import Config
from xlr.settings.judgeconfig import JudgeConfig

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1"><!-- {{ 7*7 }} | `x` \u2028'
INSTRUCTIONS = {
    "en": ("Why is the sky blue?", "Name three rivers.", "Give one tip for better sleep.", "What is a library for?"),
    "ar": ("لماذا السماء زرقاء؟", "اذكر ثلاثة أنهار.", "قدم نصيحة واحدة لنوم أفضل.", "ما فائدة المكتبة؟"),
    "zh": ("天空为什么是蓝色的？", "说出三条河流。", "给出一条改善睡眠的建议。", "图书馆有什么用？"),
}
JUDGED = f"judgements/{JudgeConfig().folder}"  # the run itself has no judge
ANSWERS = {"en": "It scatters light.", "ar": "لأن الضوء يتشتت في الهواء.", "zh": "因为空气会散射蓝光。"}


@pytest.fixture(scope="session")
def run(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one iteration in three scripts, judged; one pair's chosen response is hostile."""
    folder = tmp_path_factory.mktemp("report")
    for lang, instructions in INSTRUCTIONS.items():
        rows = [json.dumps({"id": f"q{number}", "instruction": text}) for number, text in enumerate(instructions)]
        (folder / "prompts").mkdir(exist_ok=True)
        (folder / "prompts" / f"{lang}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    tree |= {"languages": list(INSTRUCTIONS), "prompts": {"path": str(folder / "prompts")}}
    tree["evaluate"]["prompts"] = tree["prompts"]
    tree["ray"] = {"actors": 2, "cpus_per_actor": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = [sys.executable, "-m", "xlr", "run", str(folder / "run.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert {"report.html", "report.md", "report.json"} <= {path.name for path in (folder / "run").iterdir()}
    judge(folder / "run")
    pairs = read_rows(folder / "run" / "iter1" / "pairs", Pair)
    hostile = [{"role": "assistant", "content": HOSTILE}]
    of_pairs = folder / "run" / "iter1" / "pairs"
    write_rows(of_pairs / "pairs.parquet", Pair, [replace(pairs[0], chosen=hostile), *pairs[1:]])
    reseal(of_pairs)
    return folder / "run"


def judge(run: Path) -> None:
    """Write what the judge stage would: pi^0 loses against the reference answers, pi^1 wins; one judgement fails."""
    for iteration in (0, 1):
        folder = run / f"iter{iteration}" / JUDGED
        (folder / "annotations").mkdir(parents=True)
        answers = read_rows(run / f"iter{iteration}" / "eval" / "responses", Response)
        for lang, instructions in INSTRUCTIONS.items():
            own = [row for row in answers if row.lang == lang]
            rows = [judgement(row, instructions[index], index, iteration) for index, row in enumerate(own)]
            write_json(folder / "annotations" / f"{lang}.json", rows)
        bias = {"position_bias": {"instructions": 11, "second_place_win_rate": 52.5, "agreement": 90.9}}
        figures = winrates.measure(annotations.read(folder / "annotations"), None, None) | bias
        write_json(folder / "winrates.json", figures)
        facts = {
            "judge": "a <judge>",
            "baseline": "reference",
            "questions": 24,
            "asked": 24,
            "undecided": 2,
            "without_judge": 0,
            "prompt_tokens": 1200,
            "completion_tokens": 24,
            "cost": 0.5,
            "win_rate": figures["win_rate"],
            "length_controlled_win_rate": figures["length_controlled_win_rate"],
        }
        manifest = read_json(manifest_path(run / f"iter{iteration}" / "eval"))
        own = {"stage": "judge", "rows": 12, "seconds": 9.0, "facts": facts, "digest": str(figures["win_rate"])}
        write_json(manifest_path(folder), manifest | own | {"tokens": {"asked": 1200, "answered": 24}})
        reseal(folder)


def judgement(row: Response, instruction: str, index: int, iteration: int) -> dict[str, Any]:
    preferences = [1.1 + 0.7 * iteration + 0.02 * index, 1.2 + 0.6 * iteration]
    failed = row.lang == "zh" and index == 3
    return {
        "id": row.id,
        "lang": row.lang,
        "instruction": instruction,
        "output_1": ANSWERS[row.lang] * (index + 1),
        "generator_1": "reference",
        "output_2": HOSTILE if index == 0 else row.response.strip() or "?",
        "generator_2": f"iteration {iteration}",
        "preference": None if failed else sum(preferences) / 2,
        "preferences": [None, None] if failed else preferences,
        "annotator": "a <judge>",
    }


def load(run: Path, *overrides: str) -> Config:
    """The configuration of a run directory, wherever it was copied to."""
    return configfile.load(run, [f"run_dir={run}", *overrides])


def collected(run: Path) -> Found:
    """What the report collects from a run."""
    return collect(load(run), RunDir(run), run.name)

"""Benchmarks through the Ray workers: their numbers are those of lm-eval's own backend."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import RAY_TOKEN, Cli, assert_refused
from xlr.run.files import read_json

QUESTIONS = 12


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a task of two choices, one of four with the questions' lengths counted, and one that generates."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {
            "question": f"The {number}th day of the week comes after which one?",
            "choices": [f"the {number - 1}th", f"the {number + 7}th of the month", "none", "Montag"],
            "label": number % 4,
        }
        for number in range(QUESTIONS)
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{label}}",
        "metadata": {"version": 3},
    }
    four = {"task": "four", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}"}
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    two = four | {"task": "two", "doc_to_choice": "{{choices[:2]}}", "doc_to_target": "{{label % 2}}"}
    generated = {"task": "said", "output_type": "generate_until", "generation_kwargs": {"until": ["."]}}
    for task in (four, two, generated):
        own = common | task | ({"metric_list": metrics} if task is not generated else {})
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    return folder


@pytest.fixture
def config(tiny_tree: dict[str, Any], tasks: Path, write_config: Any) -> Path:
    """A run with both tasks of multiple choice."""
    tiny_tree["evaluate"] = {"benchmarks": {"tasks": ["four", "two"], "include": str(tasks)}}
    path: Path = write_config(tiny_tree)
    return path


def test_metrics_are_those_of_lm_evals_own_backend(
    config: Path, tasks: Path, tiny_models: dict[str, Path], cli_here: Cli, tmp_path: Path
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    result = cli_here("benchmark", config)
    assert result.returncode == 0, result.stderr
    found = read_json(tmp_path / "run" / "iter0" / "benchmarks" / "results.json")
    theirs = simple_evaluate(
        "hf",
        model_args={"pretrained": str(tiny_models["aligned"]), "dtype": "float32"},
        tasks=["four", "two"],
        task_manager=TaskManager(include_path=str(tasks)),
        batch_size=1,
        device="cpu",
        bootstrap_iters=1000,
    )
    for name in ("four", "two"):
        assert found[name]["rows"] == QUESTIONS
        assert found[name]["version"] == "3"
        assert set(found[name]["metrics"]) == {"acc", "acc_norm"}
        for metric, own in found[name]["metrics"].items():
            assert own["value"] == pytest.approx(theirs["results"][name][f"{metric},none"], abs=1e-4)
            assert own["error"] == pytest.approx(theirs["results"][name][f"{metric}_stderr,none"], abs=1e-4)
    page = cli_here("report", tmp_path / "run", "--tables")
    assert page.returncode == 0, page.stderr
    assert "Benchmarks of multiple choice" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_log_probabilities_of_choices_are_those_of_lm_evals_own_backend(
    config: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing stands before a choice, and where a text is longer than the model's positions."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from xlr.benchmarking import benchmarks
    from xlr.benchmarking.lmharness import _Workers
    from xlr.configfile import load
    from xlr.run.context import Context

    monkeypatch.setenv("RAY_AUTH_TOKEN", RAY_TOKEN)
    context = Context(load(config))
    folder = str(tiny_models["aligned"])
    theirs = HFLM(pretrained=folder, dtype="float32", batch_size=1, device="cpu")
    asked = [
        ("Question: one?\nAnswer:", " yes"),
        ("Question: one?\nAnswer:", " no, never"),
        ("Question: one?\nAnswer: ", "yes"),
        ("", "A text alone."),
        ("word " * (2 * theirs.max_length), "and its end"),
    ]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(asked)]
    expected = [logp for logp, _ in theirs.loglikelihood(requests)]
    target = benchmarks.artifact(context, 0)
    own = _Workers(context, target, folder, context.encoder.tokenizer)
    found = [logp for logp, _ in own.loglikelihood(requests)]
    context.close()
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("tasks_given", "message"),
    [
        (["fuor"], "lm-eval knows no task 'fuor'"),
        (["said"], "said is a task of the kind generate_until; xlr runs those of multiple_choice"),
    ],
)
def test_tasks_that_cannot_run_are_refused(tasks_given: list[str], message: str, config: Path, cli_here: Cli) -> None:
    assert_refused(cli_here("benchmark", config, f"evaluate.benchmarks.tasks={json.dumps(tasks_given)}"), message)

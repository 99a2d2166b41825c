"""The judge stage: with a server on loopback and with a model in the workers, against each kind of baseline."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import inprocess, tiny
from tests.conftest import Cli
from tests.judgeserver import Judge, longer, serving
from tests.rows import read_rows, reseal
from xlr import configfile
from xlr.commands import verify
from xlr.data.prompts import load_held_out
from xlr.errors import UserError
from xlr.evaluation import annotations, judgements, winrates
from xlr.evaluation import answers as evaluation
from xlr.findings.collect import collect
from xlr.findings.found import Run
from xlr.findings.summary import summary
from xlr.records import Response
from xlr.report import panels, tables
from xlr.run import reuse
from xlr.run.context import Context
from xlr.run.files import read_json
from xlr.run.rows import write_rows
from xlr.settings import config
from xlr.shipped import RECIPES

LANGUAGES = ["en", "es"]


@pytest.fixture(scope="module")
def evaluated(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The configuration of a run with two evaluated models: the start, and `before` with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("judged")
    before = tiny.save(folder / "before", seed=3, family="llama3")
    tree: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "languages": ["de", "es"],
        "model": {name: str(path) for name, path in tiny_models.items()},
        "prompts": {"path": str(RECIPES / "quickstart" / "prompts"), "limit": 2},
        "evaluate": {
            "prompts": {"path": str(RECIPES / "quickstart" / "heldout"), "limit": 6},
            "languages": LANGUAGES,
            "max_new_tokens": 12,
            "models": {"before": str(before)},
        },
        "judge": {"model": "scripted", "baseline": 0},
    }
    return tree


@pytest.fixture
def run(evaluated: dict[str, Any], tmp_path: Path, cli_here: Cli) -> dict[str, Any]:
    """A copy of the run of `evaluated` for one test."""
    original = Path(evaluated["run_dir"])
    if not original.is_dir():
        path = original.with_name("run.yaml")
        path.write_text(yaml.safe_dump(evaluated), encoding="utf-8")
        for model in ("0", "before"):
            result = cli_here("run", path, "--stages", "evaluate", "--iteration", model)
            assert result.returncode == 0, result.stderr
    shutil.copytree(original, tmp_path / "run")
    return evaluated | {"run_dir": str(tmp_path / "run"), "judge": dict(evaluated["judge"])}


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(Judge(longer)) as running:
        yield running


def opened(tree: dict[str, Any], **settings: Any) -> Context:
    tree["judge"] |= settings
    path = Path(tree["run_dir"]).with_name("run.yaml")
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return Context(configfile.load(path))


def rows_of(context: Context, model: int | str) -> list[dict[str, Any]]:
    folder = context.run.judged(model, "judgements", context.config.judge.folder) / "annotations"
    return [row for lang in LANGUAGES for row in read_json(folder / f"{lang}.json")]


def answers(context: Context, model: int | str) -> dict[tuple[str, str], str]:
    rows = read_rows(context.run.iteration(model) / "eval" / "responses", Response)
    return {(row.lang, row.id): row.response for row in rows}


def test_a_model_of_evaluate_models_answers_with_its_own_tokenizer(run: dict[str, Any]) -> None:
    context = opened(run)
    for row in read_rows(context.run.iteration("before") / "eval" / "responses", Response):
        assert context.encoder_of("before").decode(row.token_ids) == row.response
        assert len(row.token_ids) <= 12
    assert context.encoder_of("before").tokenizer.get_vocab() != context.encoder.tokenizer.get_vocab()


def test_answers_may_be_in_languages_without_training(run: dict[str, Any], judge: Judge) -> None:
    context = opened(run, base_url=judge.url)
    judgements.make(context, "before")
    found = collect(context.config, context.run, "run")
    shown = {table.title: {row[0] for row in table.rows} for table in tables.quality([found])}
    assert shown["Judged answers, in %"] == {*LANGUAGES, "average"}
    assert shown["Held-out prompts: one answer each"] == set(LANGUAGES)
    facts = dict(summary(found))
    assert (facts["Languages"], facts["Answers in"]) == ("German (de), Spanish (es)", "English (en), Spanish (es)")
    run["evaluate"] = run["evaluate"] | {"languages": ["es", "es"]}
    with pytest.raises(UserError, match=r"evaluate\.languages: 'es' is a duplicate"):
        opened(run)
    run["evaluate"]["languages"] = ["xx"]
    with pytest.raises(UserError, match=r'evaluate\.languages\.\d.*"xx" is no language tag of BCP 47'):
        opened(run)


def test_annotations_have_the_preferences_of_both_orders(run: dict[str, Any], judge: Judge, cli_here: Cli) -> None:
    context = opened(run, base_url=judge.url)
    facts = judgements.make(context, "before")
    ours, theirs = answers(context, "before"), answers(context, 0)
    rows = rows_of(context, "before")
    assert [row["lang"] for row in rows] == ["en"] * 6 + ["es"] * 6
    assert facts["questions"] == facts["asked"] == 2 * len(rows) - 2 * facts["without_judge"]
    for row in rows:
        own, baseline = ours[row["lang"], row["id"]], theirs[row["lang"], row["id"]]
        assert (row["output_1"], row["output_2"]) == (baseline, own)
        assert (row["generator_1"], row["generator_2"]) == ("iter0", "before")
        if row["preferences"]:
            assert row["preferences"] == pytest.approx([1 + longer(baseline, own)] * 2)
            assert row["preference"] == pytest.approx(1 + longer(baseline, own))
    figures = read_json(context.run.iteration("before") / "judgements" / "scripted" / "winrates.json")
    assert figures["win_rate"] == facts["win_rate"]
    assert figures["win_rate"] == pytest.approx(100 * sum(row["preference"] - 1 for row in rows) / len(rows))
    assert set(figures["languages"]) == set(LANGUAGES)
    assert figures["position_bias"]["second_place_win_rate"] == pytest.approx(50)
    file = context.run.iteration("before") / "judgements" / "scripted" / "annotations"
    shown = cli_here("winrate", file, "--json")
    assert json.loads(shown.stdout) == figures | {"annotations": str(file)}
    assert judgements.artifact(context, "before").manifest() is not None


def test_both_orders_remove_a_position_bias_exactly(run: dict[str, Any], judge: Judge) -> None:
    judge.rule = lambda first, second: 0.9
    context = opened(run, base_url=judge.url)
    facts = judgements.make(context, "before")
    assert facts["win_rate"] == pytest.approx(50, abs=1e-9)
    figures = read_json(context.run.iteration("before") / "judgements" / "scripted" / "winrates.json")
    assert figures["position_bias"]["second_place_win_rate"] == pytest.approx(90)
    assert figures["position_bias"]["agreement"] == 0
    assert {row["preference"] for row in rows_of(context, "before")} == {1.5}


def test_judges_are_kept_side_by_side(run: dict[str, Any], judge: Judge) -> None:
    first = opened(run, base_url=judge.url)
    judgements.make(first, "before")
    kept = first.run.judged("before", "judgements", "scripted")
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*")}
    judge.rule = lambda one, two: 1 - longer(one, two)
    second = opened(run, model="lab/Other-7.5B")
    judgements.make(second, "before")
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*")} == before
    assert [folder.name for folder in second.run.judges("before", "judgements")] == ["lab-Other-7-5B", "scripted"]

    found = collect(second.config, second.run, "run")
    own, (other,) = (found["iterations"]["before"][key] for key in ("judgements", "other_judgements"))
    assert own is not None
    assert (own["judge"], other["judge"]) == ("lab/Other-7.5B", "scripted")
    assert own["win_rate"] == pytest.approx(100 - other["win_rate"])
    assert other["agreement"] is not None
    assert other["agreement"]["agreement"] == 0
    shown = {table.title: table.rows for table in tables.quality([found])}
    judged = shown["Judged answers, in %"]
    assert [row[:3] for row in judged if row[0] == "es"] == [
        ("es", "before", "lab/Other-7.5B"),
        ("es", "before", "scripted"),
    ]
    agreement = shown["Agreement of the judges: how often another judge prefers the same answer"]
    assert agreement[0][:3] == ("before", "lab/Other-7.5B", "scripted")
    assert len(panels.win_rates([Run(second.config, second.run, found)])[0].plots) == 2 * len([*LANGUAGES, "average"])

    assert list(verify.faults(second)) == []
    (kept / "annotations" / "es.json").write_text("[]", encoding="utf-8")
    assert [name for name, _ in verify.faults(second)] == ["judge before by scripted"]


def test_another_judge_of_the_same_folder_is_refused(run: dict[str, Any], judge: Judge) -> None:
    judgements.make(opened(run, base_url=judge.url, model="gpt-4.1"), "before")
    refusal = r"judgements/gpt-4-1: made with another configuration: judge.model was 'gpt-4\.1'"
    with pytest.raises(UserError, match=refusal):
        judgements.artifact(opened(run, model="gpt-4-1"), "before").manifest()


def test_judgements_of_other_answers_are_not_shown(run: dict[str, Any], judge: Judge) -> None:
    judgements.make(opened(run, base_url=judge.url), "before")
    second = opened(run, model="another")
    judgements.make(second, "before")
    assert collect(second.config, second.run, "run")["iterations"]["before"]["other_judgements"]
    (second.run.iteration("before") / "eval" / "eval.json").write_text("{}", encoding="utf-8")
    reseal(second.run.iteration("before") / "eval")
    evaluation.artifact(second, "before").forget()
    assert collect(second.config, second.run, "run")["iterations"]["before"]["other_judgements"] == []


def test_judgements_of_an_earlier_xlr_are_refused(run: dict[str, Any], judge: Judge) -> None:
    context = opened(run, base_url=judge.url)
    judgements.make(context, "before")
    folder = context.run.iteration("before") / "judgements"
    (folder / "scripted.manifest.json").rename(folder.with_name("judgements.manifest.json"))
    for read in (lambda: judgements.artifact(context, "before"), lambda: collect(context.config, context.run, "run")):
        with pytest.raises(UserError, match=r"judgements: an earlier xlr made it, which kept one judge only; delete"):
            read()


@pytest.mark.parametrize("backend", ["openai", "transformers"])
def test_a_language_that_is_judged_already_is_not_judged_again(
    run: dict[str, Any], judge: Judge, tiny_models: dict[str, Path], tmp_path: Path, backend: str
) -> None:
    """The rows, and so the digest, are those of one run over all languages."""
    model = str(tiny_models["aligned"]) if backend == "transformers" else "scripted"
    other = run | {"run_dir": str(tmp_path / "other"), "judge": dict(run["judge"])}
    shutil.copytree(run["run_dir"], other["run_dir"])
    settings = {"backend": backend, "model": model} | ({"base_url": judge.url} if backend == "openai" else {})
    first, second = (in_process(opened(tree, **settings)) for tree in (run, other))
    whole = judgements.make(first, "before")
    source, target = judgements.artifact(first, "before"), judgements.artifact(second, "before")
    manifest = source.manifest()
    assert manifest is not None
    assert reuse.same_parts(target, manifest) == LANGUAGES
    reuse.take_parts(target, source.folder, manifest, ["es"])
    facts = judgements.make(second, "before")
    assert 0 < facts["asked"] < whole["asked"]
    made = judgements.artifact(second, "before").manifest()
    assert made is not None
    assert (made["digest"], made["rows"]) == (manifest["digest"], manifest["rows"])
    assert not reuse.kept_folder(target.run, target.folder).exists()


def in_process(context: Context) -> Context:
    return inprocess.opened(context.config, context.run.path)


def test_one_order_is_drawn_the_same_way_every_time(run: dict[str, Any], judge: Judge) -> None:
    judge.rule = lambda first, second: 1.0
    context = opened(run, base_url=judge.url, both_orders=False)
    facts = judgements.make(context, "before")
    assert facts["questions"] == 12 - facts["without_judge"]
    assert 0 < facts["win_rate"] < 100
    first = [row["preference"] for row in rows_of(context, "before")]
    assert len({len(row["preferences"]) for row in rows_of(context, "before")} - {0}) == 1
    judgements.make(context, "before")
    assert [row["preference"] for row in rows_of(context, "before")] == first
    assert facts["questions"] == len(judge.requests)


def replace_answers(context: Context, lang: str, texts: Callable[[list[Response]], list[str]]) -> list[Response]:
    """Replace the answers of the model `before` in a language."""
    (file,) = (context.run.iteration("before") / "eval" / "responses").glob(f"{lang}-*.parquet")
    rows = read_rows(file, Response)
    new = [Response(row.id, lang, 0, text, [], "stop") for row, text in zip(rows, texts(rows), strict=True)]
    write_rows(file, Response, new)
    evaluation.artifact(context, "before").finish(len(new), {}, context.clock)
    return new


def test_length_control_corrects_a_judge_that_prefers_length(run: dict[str, Any], judge: Judge) -> None:
    """The model's answers are longer, which is all that the judge prefers, so with equal lengths it would win less."""
    context = opened(run, base_url=judge.url)
    for lang in LANGUAGES:
        replace_answers(context, lang, lambda rows: ["x" * (30 + 17 * i) for i in range(len(rows))])
    figures = judgements.make(context, "before")
    assert figures["win_rate"] > 60
    assert figures["length_controlled_win_rate"] < figures["win_rate"] - 5


def test_empty_and_equal_answers_need_no_judge(run: dict[str, Any], judge: Judge) -> None:
    context = opened(run, base_url=judge.url)
    theirs = answers(context, 0)
    empty, equal, *_ = replace_answers(
        context, "es", lambda rows: [" ", theirs["es", rows[1].id], *(f"{row.response} more" for row in rows[2:])]
    )
    facts = judgements.make(context, "before")
    assert facts["without_judge"] >= 2
    assert len(judge.requests) == facts["questions"]
    found = {row["id"]: row for row in rows_of(context, "before") if row["lang"] == "es"}
    assert (found[empty.id]["preference"], found[empty.id]["preferences"]) == (1, [])
    assert (found[equal.id]["preference"], found[equal.id]["preferences"]) == (1.5, [])


def test_models_are_compared_with_reference_outputs(run: dict[str, Any], judge: Judge, tmp_path: Path) -> None:
    folder = tmp_path / "outputs"
    write_outputs(run, folder)
    context = opened(run, base_url=judge.url, baseline=str(folder))
    for model in (0, "before"):
        judgements.make(context, model)
        rows = rows_of(context, model)
        assert {row["generator_1"] for row in rows} == {"davinci"}
        assert all(row["output_1"] == f"output of {row['id']} in {row['lang']}" for row in rows)
    first, second = (
        context.run.iteration(model) / "judgements" / "scripted" / "annotations" for model in (0, "before")
    )
    found = winrates.measure(annotations.read(first), annotations.read(second), None)
    assert found["difference"]["win_rate"]["value"] == pytest.approx(
        found["second"]["win_rate"] - found["first"]["win_rate"]
    )


def write_outputs(run: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Write reference outputs in AlpacaEval's format; returns the file of each language."""
    section = config.EvaluateConfig.model_validate(run["evaluate"]).prompts
    assert section is not None
    folder.mkdir()
    for lang, prompts in load_held_out(section, LANGUAGES).items():
        rows = [
            {"instruction": one.instruction, "output": f"output of {one.id} in {lang}", "generator": "davinci"}
            for one in prompts
        ]
        (folder / f"{lang}.json").write_text(json.dumps(rows), encoding="utf-8")
    return {lang: folder / f"{lang}.json" for lang in LANGUAGES}


def test_incomplete_reference_outputs_are_refused_before_anything_is_asked(
    run: dict[str, Any], judge: Judge, tmp_path: Path
) -> None:
    file = write_outputs(run, tmp_path / "outputs")["es"]
    file.write_text(json.dumps(read_json(file)[1:]), encoding="utf-8")
    context = opened(run, base_url=judge.url, baseline=str(tmp_path / "outputs"))
    for attempt in (lambda: judgements.check(context), lambda: judgements.make(context, "before")):
        with pytest.raises(UserError, match=r"es\.json: has no output for the instruction"):
            attempt()
    assert not judge.requests


def test_a_judge_without_verdicts_is_refused(run: dict[str, Any], judge: Judge) -> None:
    judge.texts = ("Both are fine.", "Both are fine.")
    context = opened(run, base_url=judge.url, preference="choice")
    with pytest.raises(UserError, match=r"gave no verdict on .* 'Both are fine.'\. Set another judge.model"):
        judgements.make(context, "before")
    assert context.run.judges("before", "judgements") == []


def test_a_judge_in_the_workers(run: dict[str, Any], cli_here: Cli, tiny_models: dict[str, Path]) -> None:
    context = opened(run, backend="transformers", model=str(tiny_models["aligned"]))
    path = Path(run["run_dir"]).with_name("run.yaml")
    result = cli_here("judge", path, "--iteration", "before")
    assert result.returncode == 0, result.stderr
    rows = rows_of(context, "before")
    sides = [side - 1 for row in rows for side in row["preferences"]]
    assert sides
    assert all(0 < side < 1 for side in sides)
    manifest = judgements.artifact(context, "before").manifest()
    assert manifest
    assert manifest["facts"]["undecided"] == 0
    assert math.isclose(manifest["facts"]["win_rate"], 100 * sum(row["preference"] - 1 for row in rows) / len(rows))
    again = cli_here("judge", path, "--iteration", "before")
    assert "before against iter0, in %" in result.stdout
    assert "judge before: done already" in again.stdout
    assert "judge before" in cli_here("status", path).stdout


@pytest.mark.parametrize(
    ("model", "backend", "expected"),
    [
        ("lab/judge@refs/pr/1", "transformers", "judge"),
        ("/models/judge@v1", "transformers", "judge@v1"),
        ("lab/judge@v1", "openai", "lab/judge@v1"),
    ],
)
def test_a_judge_is_named_without_its_revision(model: str, backend: Any, expected: str) -> None:
    assert config.JudgeConfig(model=model, backend=backend).name == expected


def test_the_command_says_what_is_missing(run: dict[str, Any], judge: Judge, cli_here: Cli) -> None:
    path = opened(run, base_url=judge.url).run.path.with_name("run.yaml")
    result = cli_here("judge", path, "--iteration", "before", OPENAI_API_KEY="")
    assert result.returncode == 2
    assert "OPENAI_API_KEY: not set" in result.stderr
    assert "Traceback" not in result.stderr
    result = cli_here("judge", path, "--iteration", "1")
    assert result.returncode == 2
    assert "xlr evaluate" in result.stderr
    result = cli_here("judge", path, "--iteration", "0")
    assert result.returncode == 2
    assert "judge 0: not a stage of this run" in result.stderr

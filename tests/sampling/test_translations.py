"""Pairs by translations (LIDR): what is translated into what, which answer is chosen, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.inprocess import StoppedError, digests, made, opened, with_settings
from xlr import pipeline
from xlr.configfile import load
from xlr.errors import UserError
from xlr.maths.rewards import FAILED_TRANSLATION, marked_translation
from xlr.pipeline import Stage
from xlr.records import Pair, Response, SampleTask, Score
from xlr.rewarding import bytranslation
from xlr.run.manifests import read_manifest, rows_of
from xlr.sampling import translations
from xlr.settings.config import Config

Write = Callable[[dict[str, Any]], Path]


@pytest.fixture
def config(tiny_tree: dict[str, Any], write_config: Write) -> Config:
    tiny_tree["pair"] = {"by": "translations"}
    return load(str(write_config(tiny_tree)), [])


def rows(run: Path, artefact: str, lang: str) -> list[Response]:
    return rows_of(run / "iter1" / artefact, Response, part=lang)


def test_english_is_translated_into_each_language_and_each_into_english(config: Config, tmp_path: Path) -> None:
    context = made(config, tmp_path / "run")
    run = context.run.path
    for lang, source in (("es", "en"), ("en", "es")):
        given = [row.key[1:] for row in rows(run, "responses", source) if row.response.strip()]
        assert [row.key[1:] for row in rows(run, "translations", lang)] == given
    asked = translations.instruction(config, "Hello", "en", "es")
    assert asked == "Translate the following text from English to Spanish. Reply with the translation only.\n\nHello"
    first = next(row for row in rows(run, "responses", "en") if row.response.strip())
    greedy = [row for row in rows(run, "translations", "es") if row.id == first.id and row.sample == first.sample]
    text = translations.instruction(config, first.response, "en", "es")
    settings = context.config.generate.model_copy(update={"temperature": 0.0, "top_p": 1.0, "top_k": 0})
    sampling = translations.responses.Sampling(context, context.model(0), settings, 1, context.encoder)
    work = sampling.work([(translations.Prompt("other", "es", text), 5)])
    ((_, found),) = context.pool.map([(0, work.task(batch)) for batch in work.batches])
    assert [row.response for row in work.to_rows(work.batches[0], found)] == [row.response for row in greedy]


def test_the_translated_english_answer_is_chosen_and_in_english_the_own_one(config: Config, tmp_path: Path) -> None:
    run = made(config, tmp_path / "run").run.path
    pairs = rows_of(run / "iter1" / "pairs", Pair)
    assert {pair.lang for pair in pairs} == {"en", "es"}
    for pair in pairs:
        chosen, rejected = (
            [row.response for row in rows(run, artefact, pair.lang) if row.id == pair.id]
            for artefact in (("responses", "translations") if pair.lang == "en" else ("translations", "responses"))
        )
        assert pair.chosen[0]["content"] in chosen
        assert pair.rejected[0]["content"] in rejected
        assert (pair.chosen_score, pair.rejected_score) == (1.0, 0.0)
    assert not (run / "iter1" / "scores").exists()


def test_several_languages_are_rejected_in_turn(config: Config, tmp_path: Path, monkeypatch: Any) -> None:
    """In English the rejected translation is drawn for each prompt, and every candidate has a number of its own."""
    context = made(config, tmp_path / "run")
    own = [Response(f"p{number}", "en", 0, "own", [1], "stop") for number in range(40)]
    translated = [Response(row.id, "en", 2 * k, f"from {k}", [1], "stop") for row in own for k in range(3)]
    given = {"responses": own, "translations": translated}
    monkeypatch.setattr(bytranslation, "rows_of", lambda folder, *_, **__: list(given[folder.name]))
    found = bytranslation.candidates(context, 1, "en")
    assert len({row.key for row in found}) == len(found)
    first: dict[str, Score] = {}
    for row in found:
        if row.reward == 0.0:
            first.setdefault(row.id, row)
    counts = [sum(row.response == f"from {k}" for row in first.values()) for k in range(3)]
    assert min(counts) >= 5
    assert found == bytranslation.candidates(context, 1, "en")


def test_a_run_that_is_stopped_at_each_task_makes_the_same(config: Config, tmp_path: Path) -> None:
    whole = digests(made(config, tmp_path / "whole"))
    assert set(whole) == {"generate 1", "translate 1", "pair 1"}
    stopped = tmp_path / "stopped"
    for _ in range(100):
        try:
            context = opened(config, stopped, fail_after=1)
            context.run.create()
            for stage in (Stage("generate", 1), Stage("translate", 1), Stage("pair", 1)):
                if stage.artifact(context).manifest() is None:
                    stage.module.make(context, stage.iteration)
            break
        except StoppedError:
            continue
    assert digests(opened(config, stopped)) == whole


def test_nothing_is_scored(config: Config) -> None:
    names = {stage.name for stage in pipeline.stages(config)}
    assert "translate" in names
    assert "score" not in names
    assert "translate" not in {stage.name for stage in pipeline.stages(with_settings(config, pair={"by": "rewards"}))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languages": ["es"]}, "pair.by: translations go from English to the other languages and back"),
        ({"languages": ["en"]}, "pair.by: translations go from English to the other languages and back"),
        ({"pair": {"rejected": "median"}}, "pair.rejected: has no effect with pair.by=translations"),
        ({"pair": {"weight": "margin"}}, "pair.weight: has no effect with pair.by=translations"),
        ({"pair": {"penalties": {"truncated": 1.0}}}, "pair.penalties: has no effect"),
    ],
)
def test_what_translations_cannot_have_is_refused(changes: dict[str, Any], message: str, config: Config) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        with_settings(config, **changes)


def test_a_translation_that_may_not_fit_is_refused_early(config: Config, tmp_path: Path) -> None:
    context = opened(with_settings(config, generate={"max_new_tokens": 500}), tmp_path / "run")
    with pytest.raises(UserError, match=r"max_new_tokens=500: with pair.by=translations, a response and its transl"):
        translations.check(context)


def test_on_the_command_line(config: Config, tiny_tree: dict[str, Any], write_config: Write, cli: Cli) -> None:
    tiny_tree["evaluate"] = {}
    tiny_tree["generate"]["num_samples"] = 1
    path = write_config(tiny_tree)
    result = cli("run", path)
    assert result.returncode == 0, result.stderr
    assert "translate 1: finished" in result.stdout
    run = Path(tiny_tree["run_dir"])
    planned = json.loads(cli("plan", run, "--json").stdout)
    assert "translate 1" in {stage["stage"] for stage in planned["stages"]}
    report = cli("report", run, "--tables", COLUMNS="120")
    assert report.returncode == 0, report.stderr
    again = cli("run", path)
    assert "translate 1: done already" in again.stdout


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Hello.</translated>", "Hello."),
        ("\nHello.\n</translated> More.</translated>", "Hello."),
        ("Hello.", FAILED_TRANSLATION),
        ("  </translated>", FAILED_TRANSLATION),
        ("", FAILED_TRANSLATION),
    ],
)
def test_a_marked_translation_ends_at_its_mark(answer: str, expected: str) -> None:
    assert marked_translation(answer) == expected


def test_marked_translations_are_asked_for_in_the_authors_way(
    tiny_tree: dict[str, Any],
    write_config: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_tree["score"] |= {"reward": "translate", "translation": "marked"}
    tiny_tree["generate"]["max_new_tokens"] = 300
    config = load(str(write_config(tiny_tree)), [])
    context = opened(config, tmp_path / "run")
    context.run.create()
    asked: list[Any] = []
    compute = context.pool.map

    def seen(tasks: Any) -> Any:
        for key, task in tasks:
            asked.append(task)
            yield from compute([(key, task)])

    monkeypatch.setattr(context.pool, "map", seen)
    Stage("generate", 1).module.make(context, 1)
    asked.clear()
    Stage("score", 1).module.make(context, 1)
    sampled = [task for task in asked if isinstance(task, SampleTask)]
    assert sampled
    primer = context.encoder.beginning("<translated>")
    beside = len(context.encoder.prompt(translations.instruction(config, "", "es", "en"))) + len(primer)
    for task in sampled:
        assert task.settings.temperature == 0.0
        assert task.settings.max_new_tokens == 1024 - beside - 300 - 64
        for request in task.requests:
            assert request.prompt[-len(primer) :] == primer
            assert "<sentence>" in context.encoder.decode(request.prompt)
    scored = rows_of(context.run.iteration(1) / "scores", Score)
    assert {row.scored_text for row in scored} == {FAILED_TRANSLATION}  # a random model writes no end mark
    assert {row.lang for row in scored} == {"es"}
    manifest = read_manifest(context.run.iteration(1) / "scores")
    assert manifest is not None
    facts = manifest["facts"]["languages"]
    assert facts["es"]["failed_translations"] == facts["es"]["rows"] == len(scored)
    assert f"the translation of {len(scored)} of {len(scored)} responses failed" in capsys.readouterr().out


def test_marked_translations_without_the_reward_are_refused(config: Config) -> None:
    for changes in (
        {"score": {"translation": "marked"}},
        {"score": {"translation": "marked"}, "pair": {"by": "rewards"}},
    ):
        with pytest.raises(UserError, match=r"score\.translation: has no effect"):
            with_settings(config, **changes)

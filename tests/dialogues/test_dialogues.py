"""Questions of several turns: what is read, what is asked, and how answers are rated."""

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import xlr
from tests.inprocess import StoppedError, opened
from tests.judgeserver import Judge, longer, serving
from xlr import configfile
from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.data.turnrows import load_dialogues
from xlr.dialogues import answers, ratings
from xlr.errors import UserError
from xlr.findings.collect import collect
from xlr.judging import question
from xlr.pipeline import Stage
from xlr.planning.hardware import PROFILES
from xlr.planning.machines import Machines
from xlr.planning.planner import Planner
from xlr.planning.work import ESTIMATES
from xlr.records import Rating, Response
from xlr.report import tables
from xlr.run.context import Context
from xlr.run.directory import RunDir
from xlr.run.files import write_text
from xlr.run.manifests import read_manifest, rows_of
from xlr.settings.config import Config
from xlr.settings.dataconfig import TurnsConfig

RATINGS = question.ratings(2048)
CONVERSE, RATE = Stage("converse", 0), Stage("rate", 0)


def by_length(answer: str) -> dict[str, float]:
    return {f"It says much. [[{1 + len(answer) % 10}]]": 1.0}


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(Judge(longer, grade=by_length)) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "turns"
    found.mkdir()
    for lang, text in (("en", "Say {}."), ("es", "Di {}.")):
        rows: list[dict[str, Any]] = [
            {"question_id": f"{number}_{lang}", "category": category, "turns": [text.format(number), f"... {number}?"]}
            for number, category in enumerate(("math", "writing", "writing"))
        ]
        rows[0]["reference"] = ["The right one is 0.", "So is {answer}."]
        rows[2]["turns"] = rows[2]["turns"][:1]
        (found / f"{lang}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return found


@pytest.fixture
def config(tiny_tree: dict[str, Any], folder: Path, judge: Judge) -> Config:
    tiny_tree["evaluate"] = {"turns": {"path": str(folder), "max_new_tokens": 8}, "temperature": 0.7}
    tiny_tree["judge"] = {"model": "scripted", "base_url": judge.url}
    return Config.model_validate(tiny_tree)


def rated(config: Config, run: Path) -> Context:
    """A run whose start has answered and is rated."""
    for stage in (CONVERSE, RATE):
        context = opened(config, run)
        context.run.create()
        stage.module.make(context, 0)
    return context


def test_mt_bench_is_read_as_it_is(shared_data: Path) -> None:
    for lang in ("de", "en", "es", "fr", "it"):
        found = load_dialogues(TurnsConfig(path=str(shared_data / "mt_bench_x")), lang)
        assert len(found) == 80
        assert all(len(one.turns) == 2 == len(one.references) and one.category for one in found)
        assert any(one.references[0] for one in found)
    assert found[0].id == "81_IT"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"turns": ["a"]}, r"en\.jsonl:1: the row has no question_id"),
        ({"question_id": "1"}, r"en\.jsonl:1: 'turns' must be a list of texts"),
        ({"question_id": "1", "turns": "a"}, r"'turns' must be a list of texts"),
        ({"question_id": "1", "turns": []}, r"'turns' must be a list of texts"),
        ({"question_id": "1", "turns": ["a", " "]}, r"'turns' must be a list of texts"),
        ({"question_id": "1", "turns": ["a"], "reference": "b"}, r"reference must be a list of texts"),
        ({"question_id": "1", "turns": ["a"], "reference": ["b", "c"]}, r"has 2 texts for 1 turns"),
    ],
)
def test_a_broken_row_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "en.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_dialogues(TurnsConfig(path=str(tmp_path)), "en")


def test_the_same_id_twice_is_refused(tmp_path: Path) -> None:
    row = json.dumps({"question_id": "1", "turns": ["a"]})
    (tmp_path / "en.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"en\.jsonl:2: duplicate id '1'"):
        load_dialogues(TurnsConfig(path=str(tmp_path)), "en")


def test_other_columns_and_a_limit(tmp_path: Path) -> None:
    rows = [{"key": number, "asked": ["a", "b"], "solved": ["c"]} for number in range(3)]
    (tmp_path / "en.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns = {"id": "key", "instruction": "asked", "reference": "solved"}
    found = load_dialogues(TurnsConfig.model_validate({"path": str(tmp_path), "columns": columns, "limit": 2}), "en")
    assert [(one.id, one.turns, one.references) for one in found] == [(str(n), ("a", "b"), ("c", "")) for n in range(2)]


def test_each_turn_follows_the_model_s_own_answers(config: Config, judge: Judge, tmp_path: Path) -> None:
    context = rated(config, tmp_path / "run")
    rows = rows_of(context.run.iteration(0) / "dialogues", Response)
    wanted = [("0", 0), ("0", 1), ("1", 0), ("1", 1), ("2", 0)]
    assert sorted((row.lang, row.id, row.sample) for row in rows) == [
        (lang, f"{key}_{lang}", turn) for lang in ("en", "es") for key, turn in wanted
    ]
    answer = {(row.id, row.sample): row.response for row in rows}
    for one in answers.load(context):
        if len(one.turns) == 2:
            asked = answers.prompt(context, one, [answer[one.id, 0]], context.encoder)
            said = [turn.content for turn in asked.conversation if turn.role != "system"]
            assert said == [one.turns[0], answer[one.id, 0], one.turns[1]]
            assert any(
                f"User: {one.turns[0]}\n\nAssistant: {answer[one.id, 0]}\n\nUser: {one.turns[1]}\n</conversation>"
                in body["messages"][0]["content"]
                for body in judge.requests
            )


def test_every_answer_is_rated_and_paid_for_once(config: Config, judge: Judge, tmp_path: Path) -> None:
    context = rated(config, tmp_path / "run")
    responses = {(row.id, row.sample): row.response for row in rows_of(tmp_path / "run/iter0/dialogues", Response)}
    rows = rows_of(tmp_path / "run" / "iter0" / "ratings" / "scripted", Rating)
    assert len(rows) == len(responses)
    for row in rows:
        assert row.rating == pytest.approx(1 + len(responses[row.id, row.turn]) % 10)
    body = judge.requests[0]
    assert (body["max_tokens"], body["temperature"]) == (2048, 0)
    assert "logprobs" not in body
    texts = [body["messages"][0]["content"] for body in judge.requests]
    assert sum("The right one is 0." in text for text in texts) == 2  # the first turn in both languages
    assert sum("So is {answer}." in text for text in texts) == 2
    manifest = read_manifest(tmp_path / "run" / "iter0" / "ratings" / "scripted")
    assert manifest is not None
    own = manifest["facts"]["languages"]["es"]
    spanish = [row.rating for row in rows if row.lang == "es" and row.rating]
    assert own["rating"] == pytest.approx(statistics.fmean(spanish))
    assert set(own["categories"]) == {"math", "writing"}
    assert len(own["turns"]) == 2
    paid = sum(judge.paid.values())
    artifact = ratings.artifact(context, 0)
    artifact.folder.rename(tmp_path / "away")
    (tmp_path / "run" / "iter0" / "ratings" / "scripted.manifest.json").unlink()
    again = opened(config, tmp_path / "run")
    RATE.module.make(again, 0)
    assert sum(judge.paid.values()) == paid


def test_a_judge_in_the_workers_rates_by_its_probabilities(
    config: Config, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    path = str(tiny_models["aligned"])
    tree = config.model_dump(mode="json")
    tree["judge"] = {"model": path, "backend": "transformers"}
    context = rated(Config.model_validate(tree), tmp_path / "run")
    encoder = ChatEncoder(load_tokenizer(path), path)
    causal_lm = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    responses = {(row.id, row.sample): row.response for row in rows_of(tmp_path / "run/iter0/dialogues", Response)}
    dialogues = {one.id: one for one in answers.load(context)}
    for row in rows_of(tmp_path / "run" / "iter0" / "ratings" / "aligned", Rating)[::3]:
        one, said = dialogues[row.id], [responses[row.id, turn] for turn in range(row.turn)]
        before = answers.prompt(context, one, said, encoder).transcript
        asked = question.rating(
            before, responses[row.id, row.turn], one.references[row.turn], context.config.language_name(row.lang), False
        )
        prompt = encoder.prompt_of(asked)
        chances = {}
        for number in range(1, 11):
            ids = torch.tensor([[*prompt, *encoder.response(str(number))]])
            with torch.no_grad():
                logps_T = causal_lm(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            chances[number] = math.exp(logps_T[len(prompt) - 1 :].sum())
        mean = sum(number * chance for number, chance in chances.items()) / sum(chances.values())
        assert row.rating == pytest.approx(mean, abs=1e-3)


def test_a_run_that_is_stopped_at_each_task_makes_the_same(config: Config, tmp_path: Path) -> None:
    digests = []
    for name, fail_after in (("whole", 10**9), ("stopped", 1)):
        for _ in range(50):
            context = opened(config, tmp_path / name, fail_after)
            context.run.create()
            try:
                for stage in (CONVERSE, RATE):
                    if stage.artifact(context).manifest() is None:
                        stage.module.make(context, 0)
                break
            except StoppedError:
                continue
        manifests = [read_manifest(stage.artifact(context).folder) for stage in (CONVERSE, RATE)]
        digests.append([manifest["digest"] for manifest in manifests if manifest])
    assert len(digests[0]) == 2
    assert digests[0] == digests[1]


def test_a_judge_without_ratings_is_refused(config: Config, judge: Judge, tmp_path: Path) -> None:
    judge.grade = lambda answer: {"I would say seven.": 1.0}
    with pytest.raises(UserError, match=r"judge scripted: gave no rating to 10 of 10 answers; .*'I would say seven.'"):
        rated(config, tmp_path / "run")
    assert RunDir(tmp_path / "run").judges(0, "ratings") == []


def test_answers_that_may_not_fit_are_refused_early(config: Config, tmp_path: Path) -> None:
    tree = config.model_dump(mode="json")
    tree["evaluate"]["turns"]["max_new_tokens"] = 600
    with pytest.raises(UserError, match=r"evaluate\.turns\.max_new_tokens=600: the turns of the question en '0_en'"):
        answers.check(opened(Config.model_validate(tree), tmp_path / "run"))


def test_without_a_judge_the_answers_are_sampled_and_rated_later(config: Config) -> None:
    """Nodes may not reach the endpoint."""
    alone = Config.model_validate(config.model_dump(mode="json") | {"judge": {}})
    assert answers.iterations(alone) == [0, 1]
    assert ratings.iterations(alone) == []
    assert ratings.iterations(config) == [0, 1]


def changed(config: Config, **turns: Any) -> Config:
    tree = config.model_dump(mode="json")
    tree["evaluate"]["turns"] |= turns
    return Config.model_validate(tree)


def test_what_decides_ratings_does_not_decide_answers(config: Config, tmp_path: Path) -> None:
    other = {"reference": "solution"}
    for change in ({"columns": other}, {"judge_max_tokens": 99}):
        one, two = opened(config, tmp_path / "run"), opened(changed(config, **change), tmp_path / "run")
        assert answers.artifact(one, 0).settings == answers.artifact(two, 0).settings
        assert ratings.artifact(one, 0).settings != ratings.artifact(two, 0).settings
    longer_ones = opened(changed(config, max_new_tokens=9), tmp_path / "run")
    assert answers.artifact(longer_ones, 0).settings != answers.artifact(one, 0).settings


def test_a_model_of_another_name_is_compared_with_the_start(
    config: Config, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    tree = config.model_dump(mode="json")
    tree["evaluate"]["models"] = {"other": str(tiny_models["initial"])}
    config = Config.model_validate(tree)
    context = opened(config, tmp_path / "run")
    context.run.create()
    with pytest.raises(UserError, match=r"xlr converse .* --iteration other"):
        Stage("rate", "other").module.make(context, "other")
    rated(config, tmp_path / "run")
    for stage in (Stage("converse", "other"), Stage("rate", "other")):
        stage.module.make(opened(config, tmp_path / "run"), "other")
    run = xlr.open(config_of(config, tmp_path / "run"))
    assert len(run.dialogues("other").to_pandas()) == len(run.dialogues(0).to_pandas()) == 10
    own, start = run.ratings("other").to_pandas(), run.ratings(0).to_pandas()
    both = own.merge(start, on=["lang", "id", "turn"])
    manifest = read_manifest(tmp_path / "run" / "models" / "other" / "ratings" / "scripted")
    assert manifest is not None
    for lang, facts in manifest["facts"]["languages"].items():
        gains = (both.rating_x - both.rating_y)[both.lang == lang]
        assert facts["gain"]["mean"] == pytest.approx(gains.mean())
    found = collect(config, RunDir(str(tmp_path / "run")), "run")
    (table,) = [one for one in tables.quality([found]) if "several turns" in one.title]
    assert [row[:2] for row in table.rows] == [("en", "π0"), ("es", "π0"), ("en", "other"), ("es", "other")]
    assert table.rows[0][-2:] == ("", "")
    assert table.rows[-1][-2] == f"{facts['gain']['mean']:+.2f}"


def config_of(config: Config, run: Path) -> Path:
    write_text(run / "config.yaml", configfile.dump(config.model_copy(update={"run_dir": str(run)})))
    return run


def test_the_plan_knows_both_stages(config: Config, tmp_path: Path) -> None:
    context = opened(config, tmp_path / "run")
    setting = Planner(context, lambda _: Machines(PROFILES["h100"]), 100.0).setting(CONVERSE)
    first, second, *_ = setting.turns
    assert [one.prompts for one in setting.turns] == [3, 2, 3, 2]
    assert second.prompt > first.prompt + first.response  # after the first answer
    assert ESTIMATES["converse"](setting).tokens == pytest.approx(10 * 8)
    assert "10 questions to the endpoint" in ESTIMATES["rate"](setting).note


def test_the_conversation_that_a_model_continues_is_its_own(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the workers are given, against the template applied by hand; and pieces of other answers are not used."""
    context = opened(config, tmp_path / "run")
    context.run.create()
    given: list[tuple[int, ...]] = []
    compute = context.pool.map

    def seen(tasks: Any) -> Any:
        for key, task in tasks:
            given.extend(request.prompt for request in task.requests)
            yield from compute([(key, task)])

    monkeypatch.setattr(context.pool, "map", seen)
    CONVERSE.module.make(context, 0)
    said = {(row.id, row.sample): row.response for row in rows_of(tmp_path / "run/iter0/dialogues", Response)}
    wanted = []
    for one in answers.load(context):
        for turn in range(len(one.turns)):
            told: list[Any] = []
            for earlier in range(turn):
                told += [{"role": "user", "content": one.turns[earlier]}]
                told += [{"role": "assistant", "content": said[one.id, earlier]}]
            wanted.append(context.encoder.prompt_of([*told, {"role": "user", "content": one.turns[turn]}]))
    assert sorted(given) == sorted(wanted)


def test_pieces_of_a_turn_hold_for_the_answers_before_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = opened(config, tmp_path / "run")
    context.run.create()
    CONVERSE.module.make(context, 0)
    found: list[list[str]] = []
    finished = SimpleNamespace(rows=list)
    monkeypatch.setattr(
        answers.Sampling, "compute", lambda *given: found.append([one.digest for one in given[3]]) or finished
    )
    rows = rows_of(tmp_path / "run/iter0/dialogues", Response)
    dialogues = [one for one in answers.load(context) if len(one.turns) == 2]
    for text in ("one", "one", "another"):
        before = {(row.lang, row.id): [replace(row, response=text)] for row in rows if row.sample == 0}
        answers._turn(context, answers.artifact(context, 0), 0, dialogues, before, 1)
    assert found[0] == found[1] != found[2]


def test_thinking_is_left_out_of_earlier_turns(config: Config, tmp_path: Path) -> None:
    context = opened(config, tmp_path / "run")
    one = answers.load(context)[0]
    asked = answers.prompt(context, one, ["<think>a</think>\n\nb"], context.encoder)
    assert [turn.content for turn in asked.history if turn.role == "assistant"] == ["b"]


def test_an_answer_that_leaves_no_room_ends_the_conversation(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = opened(config, tmp_path / "run")
    context.run.create()
    beyond = context.encoder.tokens_beyond

    def full(told: Any, limit: int) -> int | None:
        return 10**6 if len(told) > 1 and "0" in told[0]["content"] else beyond(told, limit)

    monkeypatch.setattr(context.encoder, "tokens_beyond", full)
    facts = CONVERSE.module.make(context, 0)
    rows = rows_of(tmp_path / "run/iter0/dialogues", Response)
    cut = [row for row in rows if row.sample == 1 and row.id.startswith("0")]
    assert [(row.response, list(row.token_ids), row.finish_reason) for row in cut] == [("", [], "length")] * 2
    assert facts["es"]["answers"] == 5


@pytest.mark.parametrize(
    ("text", "rating"),
    [("Good. [[7]]", 7), ("[[3]] rather [[ 10 ]]", 10), ("8", 8), (" 10\n", 10), ("Rating: [[1]]/10", 1)],
)
def test_a_rating_stands_in_double_brackets_or_alone(text: str, rating: int) -> None:
    assert 1 + 9 * question.choice(text, RATINGS) == pytest.approx(rating)


@pytest.mark.parametrize("text", ["", "[[0]]", "[[11]]", "[[7.5]]", "seven", "7 of 10", "[7]", "[[]]"])
def test_anything_else_is_no_rating(text: str) -> None:
    assert math.isnan(question.choice(text, RATINGS))


def test_braces_in_texts_stay() -> None:
    (message,) = question.rating("{answer}", "{reference}", "{language}", "Hausa", True)
    assert "<conversation>\n{answer}\n</conversation>" in message["content"]
    assert "<answer>\n{reference}\n</answer>" in message["content"]
    assert "<right_answer>\n{language}\n</right_answer>" in message["content"]
    assert "[[5]]" in message["content"]
    (message,) = question.rating("a", "b", "", "Hausa", False)
    assert "right_answer" not in message["content"]
    assert "nothing else" in message["content"]


ROWS = st.lists(st.lists(st.one_of(st.none(), st.floats(1, 10)), min_size=1, max_size=3), min_size=1, max_size=12)


@given(ROWS)
def test_figures_are_those_of_a_plain_loop(given: list[list[float | None]]) -> None:
    rows = [Rating(str(n), "en", turn, value, "") for n, own in enumerate(given) for turn, value in enumerate(own)]
    facts = ratings.rated_facts(rows, {str(n): "even" if n % 2 == 0 else "" for n in range(len(given))})
    values = [value for own in given for value in own if value is not None]
    assert facts["undecided"] == sum(value is None for own in given for value in own)
    assert facts["questions"] == sum(any(value is not None for value in own) for own in given)
    if not values:
        assert facts["rating"] is facts["error"] is None
        return
    assert facts["rating"] == pytest.approx(sum(values) / len(values))
    assert len(facts["turns"]) == max(map(len, given))
    for turn, mean in enumerate(facts["turns"]):
        own = [one[turn] for one in given if len(one) > turn and one[turn] is not None]
        assert mean == (pytest.approx(sum(own) / len(own)) if own else None)  # type: ignore[arg-type]
    even = [value for own in given[::2] for value in own if value is not None]
    assert facts["categories"] == ({"even": pytest.approx(sum(even) / len(even))} if even else {})


@given(st.lists(st.tuples(st.floats(1, 10), st.one_of(st.none(), st.floats(1, 10))), min_size=1, max_size=20))
def test_a_gain_is_over_the_same_answers(values: list[tuple[float, float | None]]) -> None:
    own = [Rating(str(n), "en", 0, value, "") for n, (value, _) in enumerate(values)]
    start = [Rating(str(n), "en", 0, value, "") for n, (_, value) in enumerate(values)]
    facts = ratings.rated_facts(own, {row.id: "" for row in own}, start[::-1])
    gains = [value - before for value, before in values if before is not None]
    if not gains:
        assert "gain" not in facts
        return
    assert facts["gain"]["mean"] == pytest.approx(sum(gains) / len(gains), abs=1e-9)
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None
    assert facts["gain"]["error"] == (pytest.approx(error, abs=1e-9) if error is not None else None)


@given(st.lists(st.floats(1, 10), min_size=2, max_size=30), st.integers(1, 4))
def test_the_error_counts_questions_and_not_answers(values: list[float], turns: int) -> None:
    """Answers to one question that are rated alike say no more than one of them."""
    rows = [Rating(str(n), "en", turn, value, "") for n, value in enumerate(values) for turn in range(turns)]
    error = ratings.rated_facts(rows, {str(n): "" for n in range(len(values))})["error"]
    assert error == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)

"""Questions of several turns: what is read, what is asked, and how answers are rated."""

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests.inprocess import StoppedError, opened
from tests.judgeserver import Judge, longer, serving
from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.data.turnrows import load_dialogues
from xlr.dialogues import answers, ratings
from xlr.errors import UserError
from xlr.judging import question
from xlr.pipeline import Stage
from xlr.records import Rating, Response
from xlr.run.context import Context
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
    rows = rows_of(tmp_path / "run" / "iter0" / "ratings", Rating)
    assert len(rows) == len(responses)
    for row in rows:
        assert row.rating == pytest.approx(1 + len(responses[row.id, row.turn]) % 10)
    body = judge.requests[0]
    assert (body["max_tokens"], body["temperature"]) == (2048, 0)
    assert "logprobs" not in body
    texts = [body["messages"][0]["content"] for body in judge.requests]
    assert sum("The right one is 0." in text for text in texts) == 2  # the first turn in both languages
    assert sum("So is {answer}." in text for text in texts) == 2
    manifest = read_manifest(tmp_path / "run" / "iter0" / "ratings")
    assert manifest is not None
    own = manifest["facts"]["languages"]["es"]
    spanish = [row.rating for row in rows if row.lang == "es" and row.rating]
    assert own["rating"] == pytest.approx(statistics.fmean(spanish))
    assert set(own["categories"]) == {"math", "writing"}
    assert len(own["turns"]) == 2
    paid = sum(judge.paid.values())
    artifact = ratings.artifact(context, 0)
    artifact.folder.rename(tmp_path / "away")
    (tmp_path / "run" / "iter0" / "ratings.manifest.json").unlink()
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
    for row in rows_of(tmp_path / "run" / "iter0" / "ratings", Rating)[::3]:
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
    assert not (tmp_path / "run" / "iter0" / "ratings").exists()


def test_answers_that_may_not_fit_are_refused_early(config: Config, tmp_path: Path) -> None:
    tree = config.model_dump(mode="json")
    tree["evaluate"]["turns"]["max_new_tokens"] = 600
    with pytest.raises(UserError, match=r"evaluate\.turns\.max_new_tokens=600: the turns of the question en '0_en'"):
        answers.check(opened(Config.model_validate(tree), tmp_path / "run"))


def test_ratings_need_a_judge(config: Config) -> None:
    tree = config.model_dump(mode="json") | {"judge": {}}
    with pytest.raises(UserError, match=r"evaluate\.turns: nobody rates the answers; set judge\.model"):
        Config.model_validate(tree)


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

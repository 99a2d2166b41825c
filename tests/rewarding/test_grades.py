"""A judge's grades as rewards: from an endpoint, which is paid once, and from a model in the workers."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests.inprocess import made, opened, with_settings
from tests.judgeserver import Judge, longer, serving
from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.configfile import load
from xlr.errors import UserError
from xlr.judging import question
from xlr.pipeline import Stage
from xlr.records import Pair, Response, Score
from xlr.run.manifests import read_manifest, rows_of
from xlr.settings.config import Config

Write = Callable[[dict[str, Any]], Path]


def by_length(answer: str) -> dict[str, float]:
    """Longer answers get better grades; two grades are possible."""
    grade = 1 + len(answer) % 8
    return {str(grade): 0.75, str(grade + 1): 0.25}


def expected(answer: str) -> float:
    return sum(float(grade) * chance for grade, chance in by_length(answer).items())


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(Judge(longer, grade=by_length)) as running:
        yield running


@pytest.fixture
def config(tiny_tree: dict[str, Any], write_config: Write, judge: Judge) -> Config:
    tiny_tree["score"] |= {"reward": "judge"}
    tiny_tree["judge"] = {"model": "scripted", "base_url": judge.url}
    tiny_tree["evaluate"] = {}
    return load(str(write_config(tiny_tree)), [])


def scored(run: Path) -> dict[Any, Score]:
    return {row.key: row for row in rows_of(run / "iter1" / "scores", Score)}


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(-30, 0)), min_size=1, max_size=9, unique_by=lambda one: one[0]))
def test_a_grade_is_the_mean_of_the_grades_that_the_judge_may_give(given: list[tuple[int, float]]) -> None:
    total = math.fsum(math.exp(logp) for _, logp in given)
    mean = math.fsum(grade * math.exp(logp) for grade, logp in given) / total
    found = question.weighted({f" {grade}": logp for grade, logp in given} | {"x": 0.0}, question.GRADES)
    assert 1 + 8 * found == pytest.approx(mean)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("7", 7),
        ("Grade: 3.", 3),
        ("from 1 to 9: 4", 4),
        ("**5**/9", 5),
        ("7 out of 9", 7),
        ("8\n", 8),
        ("6 (on a scale of 1-9)", 6),
        ("9/9", 9),
        ("4, because ... So: 4.", 4),
    ],
)
def test_a_grade_is_the_only_number_beside_the_ends_of_the_scale(text: str, grade: int) -> None:
    assert 1 + 8 * question.choice(text, question.GRADES) == grade


@pytest.mark.parametrize("text", ["", "10", "none", "0", "8.5", "7,5", "3 or 4", "1 to 9"])
def test_a_reply_without_a_grade_has_none(text: str) -> None:
    assert math.isnan(question.choice(text, question.GRADES))


def test_a_template_needs_the_instruction_and_the_answer(tmp_path: Path) -> None:
    file = tmp_path / "grade.txt"
    file.write_text("{instruction} {answer} {output_1}", encoding="utf-8")
    filled = question.fill_grading(question.load_grading(str(file)), "{answer}", "yes", "English")
    assert filled == [{"role": "user", "content": "{answer} yes {output_1}"}]
    file.write_text("{instruction}", encoding="utf-8")
    with pytest.raises(UserError, match=r"score\.grading_template .*: has no {answer}; a template needs"):
        question.load_grading(str(file))


def test_the_endpoint_grades_every_response_once(config: Config, judge: Judge, tmp_path: Path) -> None:
    context = made(config, tmp_path / "run")
    rows, given = scored(tmp_path / "run"), rows_of(tmp_path / "run" / "iter1" / "responses", Response)
    assert len(rows) == len([row for row in given if row.response.strip()])
    for row in rows.values():
        assert row.reward == pytest.approx(expected(row.response))
        assert row.logp_policy is row.logp_reference is None
    assert set(judge.paid.values()) == {1}
    asked = judge.requests[0]["messages"][-1]["content"]
    instructions = [prompt.instruction for own in context.prompts.values() for prompt in own]
    assert any(f"<instruction>\n{text}\n</instruction>" in asked for text in instructions)
    manifest = read_manifest(tmp_path / "run" / "iter1" / "scores")
    assert manifest is not None
    assert manifest["facts"]["formula"] == "grade from 1 to 9 by scripted"
    assert manifest["settings"]["judge.model"] == "scripted"
    assert not {"judge.baseline", "judge.both_orders"} & manifest["settings"].keys()
    pairs = rows_of(tmp_path / "run" / "iter1" / "pairs", Pair)
    assert pairs
    for pair in pairs:
        assert pair.chosen_score > pair.rejected_score


def test_what_was_paid_for_is_kept_when_the_endpoint_fails(config: Config, judge: Judge, tmp_path: Path) -> None:
    config = with_settings(config, judge={"max_retries": 0, "concurrency": 1})
    context = opened(config, tmp_path / "run")
    context.run.create()
    Stage("generate", 1).module.make(context, 1)
    judge.faults = [""] * 10 + ["500"]
    with pytest.raises(UserError, match="Verdicts so far are kept"):
        Stage("score", 1).module.make(context, 1)
    made(config, tmp_path / "run")
    assert set(judge.paid.values()) == {1}
    for row in scored(tmp_path / "run").values():
        assert row.reward == pytest.approx(expected(row.response))


def test_a_response_without_a_grade_is_left_out_and_counted(config: Config, judge: Judge, tmp_path: Path) -> None:
    judge.grade = lambda answer: by_length(answer) if len(answer) % 3 else {"none": 1.0}
    made(config, tmp_path / "run")
    given = rows_of(tmp_path / "run" / "iter1" / "responses", Response)
    graded = [row.key for row in given if row.response.strip() and len(row.response) % 3]
    assert list(scored(tmp_path / "run")) == graded
    manifest = read_manifest(tmp_path / "run" / "iter1" / "scores")
    assert manifest is not None
    reasons = {reason for own in manifest["facts"]["dropped"].values() for reason in own}
    assert "the judge gave no grade, or the question is longer than it reads" in reasons


def test_a_judge_that_gives_no_grades_is_refused(config: Config, judge: Judge, tmp_path: Path) -> None:
    judge.grade = lambda answer: {"Sure": 1.0}
    with pytest.raises(UserError, match=r"judge scripted: gave no grade to \d+ of \d+ responses; .*'Sure'"):
        made(config, tmp_path / "run")


def test_a_judge_in_the_workers_grades_by_its_probabilities(
    config: Config, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = tiny_models["aligned"]
    judge = {"model": str(folder), "backend": "transformers", "base_url": None}
    context = made(with_settings(config, judge=judge), tmp_path / "run")
    encoder = ChatEncoder(load_tokenizer(str(folder)), str(folder))
    causal_lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    prompts = {(prompt.lang, prompt.id): prompt for own in context.prompts.values() for prompt in own}
    rows = list(scored(tmp_path / "run").values())
    assert rows
    for row in rows[::5]:
        asked = question.fill_grading(
            question.GRADING, prompts[row.lang, row.id].instruction, row.response, config.language_name(row.lang)
        )
        prompt = encoder.prompt_of(asked)
        chances = []
        for grade in question.GRADES.values:
            reply = encoder.response(grade)
            ids = torch.tensor([[*prompt, *reply]])
            with torch.no_grad():
                logps_T = causal_lm(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            chances.append(math.exp(logps_T[len(prompt) - 1 :].sum()))
        mean = sum(int(grade) * chance for grade, chance in zip(question.GRADES.values, chances, strict=True)) / sum(
            chances
        )
        assert row.reward == pytest.approx(mean, abs=1e-3)


def test_grades_may_be_one_of_several_rewards(config: Config, tmp_path: Path) -> None:
    made(with_settings(config, score={"reward": {"crosslingual": 1, "judge": 1}}), tmp_path / "run")
    rows = scored(tmp_path / "run")
    assert rows
    assert all(row.logp_policy is not None for row in rows.values())
    for lang in ("en", "es"):
        assert sum(row.reward for row in rows.values() if row.lang == lang) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": {"model": None}}, r"judge\.model: not set; name the judge, which score\.reward asks for"),
        ({"judge": {"serve": "vllm --port {port}"}}, r"judge\.serve: the workers hold the GPUs"),
        ({"score": {"reward": "crosslingual"}}, r"judge\.model: there are no answers to judge"),
        (
            {"score": {"reward": "crosslingual", "grading_template": "x"}, "judge": {"model": None}},
            r"score\.grading_template: has no effect",
        ),
        ({"pair": {"per_token": True}}, r"pair\.per_token: only one implicit reward"),
    ],
)
def test_what_grades_need_is_checked(changes: dict[str, Any], message: str, config: Config) -> None:
    with pytest.raises(UserError, match=message):
        with_settings(config, **changes)

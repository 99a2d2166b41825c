"""A judge behind an endpoint with rate limits, stalls, lost connections and invalid replies: no verdict is lost or paid
for twice."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.judgeserver import PROMPT_TOKENS, Judge, longer, serving
from tests.waiting import descendants
from xlr import configfile
from xlr.errors import UserError
from xlr.evaluation import judgements
from xlr.judging import endpoint, question
from xlr.records import Message, Verdict
from xlr.run.context import Context


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


@pytest.fixture
def judge() -> Iterator[Judge]:
    with serving(Judge(longer)) as running:
        yield running


def context(tree: dict[str, Any], judge: Judge, **settings: Any) -> Context:
    tree["judge"] = {"model": "scripted", "base_url": judge.url, "concurrency": 4} | settings
    path = Path(tree["run_dir"]).with_name("judged.yaml")
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    found = Context(configfile.load(path))
    found.run.create()
    return found


def questions(count: int) -> list[list[Message]]:
    return [
        question.fill(question.DEFAULT, f"Say {i}.", "a" * (5 + i), "b" * (20 - i), "Spanish") for i in range(count)
    ]


def expected(count: int) -> list[float]:
    return [longer("a" * (5 + i), "b" * (20 - i)) for i in range(count)]


def ask(run: Context, asked: list[list[Message]]) -> tuple[list[Verdict], int]:
    return endpoint.ask(run, judgements.artifact(run, 1), "judge 1", asked, ["es"] * len(asked))


def preferences(found: tuple[list[Verdict], int]) -> list[float]:
    return [verdict.preference for verdict in found[0]]


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_asked(
    tiny_tree: dict[str, Any], judge: Judge, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    run = context(tiny_tree, judge, cache=str(tmp_path / "file" / "verdicts"))
    with pytest.raises(UserError, match=r"file/verdicts: verdicts cannot be written there \(Not a directory\)"):
        ask(run, questions(2))
    assert not judge.requests


def test_weighted_verdicts_are_cached(tiny_tree: dict[str, Any], judge: Judge) -> None:
    run = context(tiny_tree, judge)
    found = ask(run, questions(10))
    assert preferences(found) == pytest.approx(expected(10))
    assert found[1] == 10
    assert {(v.prompt_tokens, v.completion_tokens) for v in found[0]} == {(PROMPT_TOKENS, 1)}
    body = judge.requests[0]
    assert body["model"] == "scripted"
    assert (body["max_tokens"], body["temperature"], body["logprobs"], body["top_logprobs"]) == (1, 0, True, 20)
    again = ask(run, questions(12))
    assert preferences(again) == pytest.approx(expected(12))
    assert again[1] == 2
    assert set(judge.paid.values()) == {1}


def test_settings_that_decide_the_verdict_are_in_the_key_and_others_are_not(
    tiny_tree: dict[str, Any], judge: Judge
) -> None:
    ask(context(tiny_tree, judge), questions(2))
    ask(context(tiny_tree, judge, extra_body={"seed": 1}), questions(2))
    assert len(judge.requests) == 4
    assert judge.requests[-1]["seed"] == 1
    ask(context(tiny_tree, judge, concurrency=1, max_retries=2, timeout=50), questions(2))
    assert len(judge.requests) == 4


def test_a_repeated_question_is_asked_once(tiny_tree: dict[str, Any], judge: Judge) -> None:
    found = ask(context(tiny_tree, judge), questions(3) * 2)
    assert preferences(found) == pytest.approx(expected(3) * 2)
    assert found[1] == 3


def test_a_choice_is_read_from_the_text(tiny_tree: dict[str, Any]) -> None:
    with serving(Judge(longer, logprobs=False, texts=("I choose m.", "I choose M."))) as judge:
        found = ask(context(tiny_tree, judge, preference="choice"), questions(10))
        assert preferences(found) == [float(second > 0.5) for second in expected(10)]
        assert judge.requests[0]["max_tokens"] == 16
        assert "logprobs" not in judge.requests[0]


def test_an_undecided_choice_is_cached_as_undecided(tiny_tree: dict[str, Any]) -> None:
    with serving(Judge(longer, texts=("Both are good.", "M"))) as judge:
        run = context(tiny_tree, judge, preference="choice", max_tokens=None, temperature=None)
        for asked in (10, 0):
            found = ask(run, questions(10))
            assert found[1] == asked
            assert [math.isnan(one) for one in preferences(found)] == [second <= 0.5 for second in expected(10)]
        assert not {"max_tokens", "temperature"} & set(judge.requests[0])


def test_every_kind_of_fault_is_retried(tiny_tree: dict[str, Any], judge: Judge) -> None:
    judge.faults = ["429", "drop", "garbage", "500", "page", "stall", "503", "429", "drop", "garbage"]
    found = ask(context(tiny_tree, judge, timeout=1), questions(12))
    assert preferences(found) == pytest.approx(expected(12))
    assert judge.faults == []
    assert set(judge.paid.values()) == {1}


REFUSALS = {
    "401": "refuses the key in OPENAI_API_KEY .*this is 401.*export a valid one",
    "403": "refuses the key in OPENAI_API_KEY",
    "404": "does not know this model or address .*judge.model or judge.base_url",
    "400": "refuses all questions: this is 400",
    "429": "still limits the rate or the quota after 1 retries .*slow down",
    "500": "fails .*this is 500",
    "stall": r"no answer within judge.timeout=0.5 s \(attempts: 2\)",
    "drop": "cannot be reached .*attempts: 2",
    "page": "not a chat completion .*It works!.*judge.base_url",
}


RETRIED = ("429", "500", "stall", "drop", "page")


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_refusal_is_explained(fault: str, tiny_tree: dict[str, Any], judge: Judge) -> None:
    judge.faults = [fault] * 3
    with pytest.raises(UserError, match=f"judge scripted at http://127.0.0.1.*{REFUSALS[fault]}"):
        ask(context(tiny_tree, judge, max_retries=1, timeout=0.5), questions(5))
    # The error shows before many questions are asked.
    assert len(judge.requests) == (3 if fault == "400" else 1 + (fault in RETRIED))


def test_a_question_refused_after_a_verdict_is_undecided_and_asked_again_next_time(
    tiny_tree: dict[str, Any], judge: Judge
) -> None:
    run = context(tiny_tree, judge, concurrency=1)
    judge.faults = ["400", "400", "", "400"]
    found = ask(run, questions(5))
    assert found[1] == 2
    assert [math.isnan(one) for one in preferences(found)] == [True, True, False, True, False]
    judge.faults = ["400"] * 3
    assert [math.isnan(one) for one in preferences(ask(run, questions(5)))].count(True) == 3
    assert preferences(ask(run, questions(5))) == pytest.approx(expected(5))
    assert set(judge.paid.values()) == {1}


def test_verdicts_are_kept_when_the_key_is_refused_midway(tiny_tree: dict[str, Any], judge: Judge) -> None:
    run = context(tiny_tree, judge)
    ask(run, questions(4))
    judge.faults = ["401"]
    with pytest.raises(UserError, match="refuses the key"):
        ask(run, questions(5))
    assert preferences(ask(run, questions(9))) == pytest.approx(expected(9))
    assert set(judge.paid.values()) == {1}


def test_an_endpoint_without_log_probabilities_is_refused(tiny_tree: dict[str, Any]) -> None:
    with serving(Judge(longer, logprobs=False)) as judge, pytest.raises(UserError, match=r"judge\.preference=choice"):
        ask(context(tiny_tree, judge), questions(3))


def test_an_endpoint_that_does_not_listen_is_refused(tiny_tree: dict[str, Any]) -> None:
    with serving(Judge(longer)) as judge:
        pass
    with pytest.raises(UserError, match=r"cannot be reached .*attempts: 1.*check that a server listens there"):
        ask(context(tiny_tree, judge, max_retries=0), questions(1))


def test_require_answering_asks_something_free(tiny_tree: dict[str, Any]) -> None:
    with serving(Judge(longer)) as judge:
        settings = context(tiny_tree, judge).config.judge
        endpoint.require_answering(settings)  # the endpoint cannot list its models, but answers
    with pytest.raises(UserError, match=r"cannot be reached .*attempts: 1"):
        endpoint.require_answering(settings)


def test_a_served_judge_runs_only_while_it_is_asked(
    tiny_tree: dict[str, Any], judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.chdir(Path(__file__).parents[2])
    command = f"{sys.executable} -m tests.judgeserver {{port}}"
    run = context(tiny_tree, judge, serve=command)
    found = ask(run, questions(3))
    assert preferences(found) == pytest.approx(expected(3))
    assert not judge.requests, "judge.base_url was asked instead"
    assert not descendants(os.getpid(), lambda process: "tests.judgeserver" in process.cmdline())
    assert ask(run, questions(3))[1] == 0  # nothing to ask, so no server is started
    with pytest.raises(
        UserError, match=r"judge\.serve: exited with code 3 before it listened; see .*judge-server\.log"
    ):
        ask(context(tiny_tree, judge, serve=f"{sys.executable} -c 'raise SystemExit(3)' {{port}}"), questions(4))
    with pytest.raises(UserError, match=r"judge\.serve: /nowhere/vllm cannot be started"):
        ask(context(tiny_tree, judge, serve="/nowhere/vllm {port}"), questions(4))
    with pytest.raises(UserError, match=r"judge\.serve: does not contain \{port\}"):
        context(tiny_tree, judge, serve="vllm serve {model}")


def test_a_missing_key_is_refused(tiny_tree: dict[str, Any], judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY: not set"):
        ask(context(tiny_tree, judge), questions(1))
    monkeypatch.setenv("OTHER_KEY", "x")
    assert ask(context(tiny_tree, judge, api_key_variable="OTHER_KEY"), questions(1))[1] == 1


def test_the_estimate_is_shown_and_the_budget_is_kept(
    tiny_tree: dict[str, Any], judge: Judge, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = {"input_price": 1000.0, "output_price": 2000.0}  # 0.102 a verdict
    with pytest.raises(UserError, match=r"judge.budget 0.001: 0 is spent, and 10 more verdicts cost about"):
        ask(context(tiny_tree, judge, budget=0.001, **prices), questions(10))
    assert not judge.requests
    capsys.readouterr()
    assert ask(context(tiny_tree, judge, **prices), questions(10))[1] == 10
    said = capsys.readouterr().out
    assert "judge 1: 10 questions, about" in said
    assert "by judge.input_price and judge.output_price" in said
    with pytest.raises(UserError, match=r"judge.budget 1: 1.02 is spent, and 2 more"):
        ask(context(tiny_tree, judge, budget=1, **prices), questions(12))
    ask(context(tiny_tree, judge, budget=1, **prices), questions(10))  # cached verdicts cost nothing
    assert len(judge.requests) == 10


def test_the_budget_stops_requests_that_cost_more_than_estimated(tiny_tree: dict[str, Any], judge: Judge) -> None:
    """The estimate is about 400 tokens a question, by the tiny tokenizer; this judge bills 10,000."""
    plain = judge.reply

    def expensive(body: dict[str, Any]) -> dict[str, Any]:
        found = plain(body)
        found["usage"]["prompt_tokens"] = 10_000
        return found

    judge.reply = expensive  # type: ignore[method-assign]
    run = context(tiny_tree, judge, budget=50_000.0, input_price=1e6, output_price=0.0)
    with pytest.raises(UserError, match=r"judge\.budget 50000"):
        ask(run, questions(12))
    assert 5 <= len(judge.requests) <= 5 + 4  # requests under way are still paid for
    kept = [line for file in (run.run.path / "verdicts").iterdir() for line in file.read_text().splitlines()]
    assert len(kept) == len(judge.requests)


def test_a_killed_judge_stage_continues_with_the_missing_verdicts(tiny_tree: dict[str, Any]) -> None:
    """SIGKILL, then SIGTERM after a restart: every verdict received so far is on disk."""

    def slowly(first: str, second: str) -> float:
        time.sleep(0.1)
        return longer(first, second)

    with serving(Judge(slowly)) as judge:
        run = context(tiny_tree, judge, concurrency=1)
        code = (
            "import sys; from tests.judging.test_endpoint import ask, questions; "
            "from xlr import configfile; from xlr.cluster import preemption; "
            "from xlr.run.context import Context; preemption.end_on_signals(); "
            "ask(Context(configfile.load(sys.argv[1])), questions(15))"
        )
        command = [sys.executable, "-c", code, str(Path(tiny_tree["run_dir"]).with_name("judged.yaml"))]
        for number in (signal.SIGKILL, signal.SIGTERM):
            already = len(judge.requests)
            process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=os.environ, stderr=subprocess.PIPE)
            while len(judge.requests) < already + 5:
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.send_signal(number)
            process.communicate()
        found = ask(run, questions(15))
    assert preferences(found) == pytest.approx(expected(15))
    again = [json.loads(body) for body, times in judge.paid.items() if times > 1]
    assert len(again) <= 1  # the request under way at SIGKILL

"""`xlr try`: tokens as workers sample them, each with its share of the reward."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Cli, assert_refused
from xlr.commands.tryout import Answer, write_page
from xlr.model.streaming import stream
from xlr.model.weights import load_causal_lm
from xlr.model.worker import Worker
from xlr.records import Example, SampleRequest, SampleSettings
from xlr.terminal.tokens import token_style


@pytest.mark.parametrize("settings", [(0.9, 1.0, 0), (0.7, 0.8, 0), (1.3, 1.0, 5), (0.0, 1.0, 0)])
def test_a_stream_is_what_a_worker_samples_and_its_shares_are_the_reward(
    settings: tuple[float, float, int], tiny_models: dict[str, Path]
) -> None:
    policy, initial = (str(tiny_models[name]) for name in ("aligned", "initial"))
    how = SampleSettings(*settings, max_new_tokens=12, stop_ids=(2,))
    worker = Worker(None, "float32", "sdpa")
    models = [load_causal_lm(name, torch.float32, "sdpa") for name in (policy, initial)]
    for seed in range(4):
        prompt = (5, 9, 14, 7)
        steps = list(stream(*models, prompt, how, seed))
        ((tokens, reason),) = worker.sample(policy, [SampleRequest(prompt, seed)], how)
        assert [step.token for step in steps if step.token != 2] == tokens
        assert (steps[-1].token == 2) is (reason == "stop")
        example = Example(prompt, (tuple(step.token for step in steps),))
        (((policy_logp, initial_logp),),) = worker.score([policy, initial], [example])
        assert sum(step.log_ratio for step in steps) == pytest.approx(policy_logp - initial_logp, abs=1e-4)


def test_answers_are_printed_and_put_side_by_side(
    cli_here: Cli, tiny_tree: dict[str, Any], write_config: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    path = write_config(tiny_tree)
    found = cli_here("try", path, "¿Por qué?", "--html", tmp_path / "page.html", PYTHONIOENCODING="utf-8")
    assert (found.returncode, found.stderr) == (0, "")  # also no warning of a library
    assert "π0\n" in found.stdout
    assert " nats" in found.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h2>π0</h2>" in page
    assert "<h1>¿Por qué?</h1>" in page
    again = cli_here("try", path, "¿Por qué?", PYTHONIOENCODING="utf-8")
    assert again.stdout == found.stdout
    assert cli_here("try", path, "¿Por qué?", "--seed", 1, PYTHONIOENCODING="utf-8").stdout != found.stdout
    assert_refused(cli_here("try", path, "?", "--models", "7"), "--models 7: not a model of this run, which has 0, 1")
    assert_refused(cli_here("try", path, "?", "--models", "1"), "not finished yet; run `xlr train")


def test_markup_in_answers_stays_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    write_page(tmp_path / "x.html", hostile, [Answer(hostile, [(hostile, 3.0), ("b", -0.5)], 2.5, finished=True)])
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert hostile not in page
    assert page.count("&lt;script&gt;") == 4
    assert 'title="+3.00 nats" style="background:rgba(0,150,80,0.50)"' in page


def test_small_shares_have_no_colour() -> None:
    ratios = (0.1, -0.1, 0.5, -0.5, 2.0, -2.0)
    assert list(map(token_style, ratios)) == ["", "", "green", "red", "bold green", "bold red"]

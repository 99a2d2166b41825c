"""Rewards of a reward model, and means of several rewards, through the stages with the real worker."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.inprocess import StoppedError, digests, made, opened, with_settings
from tests.model.test_rewardmodel import own_rating
from xlr.configfile import load
from xlr.maths.rewards import spread, standardised_mean
from xlr.pipeline import Stage
from xlr.records import Pair, Response, Score
from xlr.rewarding import scores
from xlr.run.files import read_json
from xlr.run.manifests import read_manifest, rows_of
from xlr.settings.config import Config

Write = Callable[[dict[str, Any]], Path]
FINITE = st.floats(-1e6, 1e6)


@given(st.lists(st.lists(FINITE, min_size=2, max_size=2), min_size=1, max_size=9), st.floats(0.1, 10))
def test_the_mean_is_that_of_standardised_rewards(rewards: list[list[float]], weight: float) -> None:
    kinds = list(zip(*rewards, strict=True))
    spreads = [spread(own) for own in kinds]
    found = [standardised_mean(own, spreads, [1.0, weight]) for own in rewards]
    for own, value in zip(rewards, found, strict=True):
        expected = 0.0
        for reward, kind, times in zip(own, kinds, (1.0, weight), strict=True):
            deviation = statistics.pstdev(kind)
            if deviation > 1e-9 * (1 + max(map(abs, kind))):
                expected += times * (reward - statistics.mean(kind)) / deviation / (1 + weight)
            elif spread(kind)[1] > 0:
                return  # what rounding leaves of equal rewards
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert statistics.fmean(found) == pytest.approx(0, abs=1e-6)


@pytest.fixture
def config(tiny_tree: dict[str, Any], write_config: Write, tmp_path: Path) -> Config:
    """A run whose reward is a reward model's rating."""
    tiny_tree["score"] |= {"reward": "model", "model": str(tiny.save_reward_model(tmp_path / "rm", 3, "llama3"))}
    return load(str(write_config(tiny_tree)), [])


def scored(run: Path) -> dict[Any, Score]:
    return {row.key: row for row in rows_of(run / "iter1" / "scores", Score)}


def test_a_reward_model_rates_the_conversation_in_its_own_language(config: Config, tmp_path: Path) -> None:
    context = made(config, tmp_path / "run")
    rows, given = scored(tmp_path / "run"), rows_of(tmp_path / "run" / "iter1" / "responses", Response)
    assert len(rows) == len([row for row in given if row.response.strip()])
    prompts = {(prompt.lang, prompt.id): prompt for own in context.prompts.values() for prompt in own}
    for row in rows.values():
        asked = prompts[row.lang, row.id].instruction
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": row.response}]
        assert row.reward == pytest.approx(own_rating(tmp_path / "rm", turns), abs=1e-4)  # type: ignore[arg-type]
        assert row.logp_policy is row.logp_reference is None
    assert rows_of(tmp_path / "run" / "iter1" / "pairs", Pair)
    manifest = read_manifest(tmp_path / "run" / "iter1" / "scores")
    assert manifest is not None
    assert manifest["facts"]["formula"] == f"rating by {tmp_path / 'rm'}"
    assert sorted(manifest["inputs"]) == ["responses", "reward model"]
    # Training compares its log-probabilities with nothing.
    assert read_json(tmp_path / "run" / "iter1" / "scores" / scores.PROBES) == []


def test_several_rewards_are_standardised_by_language_and_added(config: Config, tmp_path: Path) -> None:
    weights = {"model": 0.5, "crosslingual": 1.0, "multilingual": 2.0}
    made(with_settings(config, score={"reward": weights}), tmp_path / "all")
    alone = {}
    for mode in weights:
        model = config.score.model if mode == "model" else None
        made(with_settings(config, score={"reward": mode, "model": model}), tmp_path / mode)
        alone[mode] = scored(tmp_path / mode)
    together = scored(tmp_path / "all")
    assert together.keys() == alone["model"].keys()
    for lang in ("en", "es"):
        keys = [key for key in together if key[0] == lang]
        expected = dict.fromkeys(keys, 0.0)
        for mode, weight in weights.items():
            values = [alone[mode][key].reward for key in keys]
            for key, value in zip(keys, values, strict=True):
                expected[key] += weight * (value - statistics.mean(values)) / statistics.pstdev(values) / 3.5
        for key in keys:
            assert together[key].reward == pytest.approx(expected[key], abs=1e-6)
            assert together[key].logps == pytest.approx(alone["crosslingual"][key].logps, abs=1e-5)
            assert math.isfinite(together[key].reward)
    probes = read_json(tmp_path / "all" / "iter1" / "scores" / scores.PROBES)
    assert probes == read_json(tmp_path / "crosslingual" / "iter1" / "scores" / scores.PROBES)


def test_scores_of_several_rewards_are_the_same_after_a_stop(config: Config, tmp_path: Path) -> None:
    config = with_settings(config, score={"reward": {"crosslingual": 1, "model": 1}, "batch_tokens": 200})
    whole = digests(made(config, tmp_path / "whole"))
    folders = []
    for tasks in (2, 3, 4, 5, 6, 7, 8):  # each start goes on where the last one stopped
        context = opened(config, tmp_path / "stopped")
        if tasks == 2:
            Stage("generate", 1).module.make(context, 1)
        context.pool.fail_after = context.pool.computed + tasks
        try:
            Stage("score", 1).module.make(context, 1)
            break
        except StoppedError:
            folders.append({path.name for path in (tmp_path / "stopped" / "iter1").glob("scores.parts*")})
    assert {"scores.parts-crosslingual", "scores.parts-model"} in folders
    assert digests(made(config, tmp_path / "stopped")) == whole
    assert not list((tmp_path / "stopped" / "iter1").glob("scores.parts*"))


def test_an_answer_that_a_reward_lacks_is_left_out_once(config: Config, tmp_path: Path) -> None:
    """The reward model has fewer positions than the models."""
    file = tmp_path / "rm" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 60}), encoding="utf-8")
    made(with_settings(config, score={"reward": {"crosslingual": 1, "model": 1}}), tmp_path / "run")
    manifest = read_manifest(tmp_path / "run" / "iter1" / "scores")
    assert manifest is not None
    rows, dropped = scored(tmp_path / "run"), manifest["facts"]["dropped"]
    beyond = [reasons.get("longer than the reward model's 60 positions", 0) for reasons in dropped.values()]
    assert sum(beyond) > 0
    given = rows_of(tmp_path / "run" / "iter1" / "responses", Response)
    assert len(rows) + sum(sum(own.values()) for own in dropped.values()) == len(given)


def test_the_terminator_counts_or_not(config: Config, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    plain = with_settings(config, score={"reward": "multilingual", "model": None})
    made(plain, tmp_path / "with")
    context = made(with_settings(plain, score={"terminator": False}), tmp_path / "without")
    whole, cut = scored(tmp_path / "with"), scored(tmp_path / "without")
    assert whole.keys() == cut.keys()
    prompts = {(prompt.lang, prompt.id): prompt for own in context.prompts.values() for prompt in own}
    for key, row in cut.items():
        assert row.num_tokens == whole[key].num_tokens - 1
        asked = context.encoder.prompt(prompts[row.lang, row.id].instruction)
        for name, logp, counted in zip(("aligned", "initial"), row.logps, whole[key].logps, strict=True):
            causal_lm = AutoModelForCausalLM.from_pretrained(tiny_models[name], dtype=torch.float64)
            ids = torch.tensor([[*asked, *context.encoder.response(row.response)]])
            with torch.no_grad():
                logps_T = (
                    causal_lm(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[len(asked) - 1 :, 0]
                )
            assert logp == pytest.approx(float(logps_T[:-1].sum()), abs=1e-3)
            assert counted == pytest.approx(float(logps_T.sum()), abs=1e-3)
    probes = read_json(tmp_path / "without" / "iter1" / "scores" / scores.PROBES)
    assert probes
    assert all(context.encoder.terminator_id not in probe["response"] for probe in probes)

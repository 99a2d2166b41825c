"""Figures of scores, and whether rewards differ by more than the noise of bfloat16."""

import math
import random
import statistics

import pytest

from xlr.maths.noise import reward_noise
from xlr.records import Score
from xlr.rewarding.scoretotals import ScoreTotals, reward_facts

TOKENS = 400


def scores(spread: float, prompts: int = 50, samples: int = 10) -> list[Score]:
    """Rewards with this standard deviation within a prompt; between prompts they differ by much more."""
    generator = random.Random(0)
    rewards = [[100.0 * prompt + generator.gauss(0, spread) for _ in range(samples)] for prompt in range(prompts)]
    return [
        Score(str(prompt), "es", sample, "", "stop", "", 0.0, 0.0, reward, TOKENS, 1, "es", 0.0)
        for prompt, own in enumerate(rewards)
        for sample, reward in enumerate(own)
    ]


def noise_warning(rows: list[Score]) -> str | None:
    totals = ScoreTotals()
    totals.add(rows)
    return totals.noise_warning()


def test_choices_that_rounding_would_change_are_said() -> None:
    noise = reward_noise(TOKENS)
    assert noise == pytest.approx(20 * reward_noise(1))
    warning = noise_warning(scores(noise))
    assert warning
    assert f"may explain {noise:.2g}" in warning
    assert "score.dtype=float32" in warning
    assert noise_warning(scores(4 * noise)) is None


def test_prompts_with_one_response_have_no_choice() -> None:
    assert noise_warning(scores(0.0, samples=1)) is None
    assert noise_warning([]) is None
    assert math.isfinite(reward_noise(0))


def test_figures_do_not_depend_on_how_scores_are_divided() -> None:
    rows = scores(1.0, prompts=7, samples=3)
    totals = ScoreTotals()
    for start in range(0, len(rows), 6):
        totals.add(rows[start : start + 6])
    assert totals.facts() == reward_facts(rows)
    assert totals.noise_warning() == noise_warning(rows)
    rewards = [row.reward for row in rows]
    assert totals.facts()["reward_mean"] == pytest.approx(statistics.fmean(rewards))
    assert totals.facts()["reward_std"] == pytest.approx(statistics.pstdev(rewards))
    assert totals.facts()["flaws"] == {"duplicate": 7 * 2, "repeated": 0, "truncated": 0, "wrong_language": 0} or (
        totals.facts()["flaws"] == {"duplicate": 7 * 2}
    )

"""Whether rewards differ by more than the noise of bfloat16."""

import math
import random

import pytest

from xlr.maths.noise import reward_noise
from xlr.records import Score
from xlr.rewarding.scores import noise_warning

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

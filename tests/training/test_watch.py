"""Training warnings: a steady fall is distinguished from noise."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr.training.watch import WINDOW, Watch, accuracy_drop, falls_steadily


def metrics(chosen: float = 0.0, english: float = 0.8) -> dict[str, float]:
    return {"rewards/chosen": chosen, "lang/en/rewards/accuracies": english}


def test_a_steady_fall_in_noise_gives_one_warning() -> None:
    noise = random.Random(0)
    watch, warnings = Watch(reference=True), []
    for step in range(3 * WINDOW):
        warnings += watch.see(step, metrics(chosen=-0.02 * step + noise.gauss(0, 0.02)), beta=0.1)
    assert len(warnings) == 1
    assert "logps/chosen has been falling for 30 steps" in warnings[0]
    assert watch.warnings == [f"step {3 * WINDOW - 1}: {warnings[0]}"]


@given(seed=st.integers(0, 1000))
def test_noise_around_a_level_is_not_a_fall(seed: int) -> None:
    noise = random.Random(seed)
    values = [noise.choice((-1.0, 1.0)) * (1 + i % 2) for i in range(WINDOW)] * 3
    assert not falls_steadily(values)


@given(values=st.lists(st.floats(-100, 100), max_size=3 * WINDOW - 1))
def test_too_few_steps_give_no_warning(values: list[float]) -> None:
    assert not falls_steadily(values)


def test_a_falling_but_positive_chosen_reward_gives_no_warning() -> None:
    watch = Watch(reference=True)
    assert not [w for step in range(40) for w in watch.see(step, metrics(chosen=10 - 0.1 * step), beta=0.1)]


def test_without_a_reference_nothing_falls_below_it() -> None:
    watch = Watch(reference=False)
    assert not [w for step in range(40) for w in watch.see(step, metrics(chosen=-0.1 * step), beta=0.1)]


def test_english_accuracy_far_below_its_best_gives_a_warning() -> None:
    watch = Watch(reference=True)
    for step in range(WINDOW):
        assert not watch.see(step, metrics(english=0.9), 0.1)
    said = [warning for step in range(WINDOW) for warning in watch.see(step, metrics(english=0.5), 0.1)]
    assert len(said) == 1
    assert "lang/en/rewards/accuracies is 0.16 below its best" in said[0]
    held_out = [0.9, 0.6]
    said = [w for value in held_out for w in watch.see(0, {**metrics(), "eval_lang/en/rewards/accuracies": value}, 0.1)]
    assert any("eval_lang/en/rewards/accuracies is 0.30 below" in warning for warning in said)


@pytest.mark.parametrize(("values", "window", "drop"), [([], 1, 0), ([0.9, 0.8], 1, 0), ([0.9, 0.5], 1, 0.4)])
def test_small_drops_are_ignored(values: list[float], window: int, drop: float) -> None:
    assert accuracy_drop(values, window) == pytest.approx(drop)

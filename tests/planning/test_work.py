"""The work of each stage by formula: sums by hand, and what must hold for any machines."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr.maths.memory import LLAMA3_8B
from xlr.planning.hardware import PROFILES
from xlr.planning.lengths import Lengths
from xlr.planning.machines import Machines
from xlr.planning.setting import Estimate, Setting
from xlr.planning.work import ESTIMATES
from xlr.settings.config import Config
from xlr.stages import KINDS

SPANISH = Lengths(3000, 150.0, 200.0, 500.0)
TREE: dict[str, Any] = {
    "run_dir": "/run",
    "languages": ["es", "de"],
    "model": {"initial": "/initial", "aligned": "/aligned", "dtype": "bfloat16"},
    "prompts": {"path": "/prompts"},
    "generate": {"backend": "vllm", "max_num_seqs": 512},
    "train": {"gradient_checkpointing": "selective", "save_steps": 0, "save_minutes": 0.0},
}


def setting(machines: Machines, **sections: Any) -> Setting:
    config = Config.model_validate(TREE | sections)
    both = {"es": SPANISH, "de": SPANISH}  # of equal lengths: both count
    return Setting(config, 1, LLAMA3_8B, both, [SPANISH], [], [], machines)


H100 = Machines(PROFILES["h100"], 1, 8)


def test_every_stage_has_an_estimate() -> None:
    assert ESTIMATES.keys() == KINDS.keys()


def test_tokens_and_operations_are_sums_over_languages_prompts_and_samples() -> None:
    own = setting(H100)
    assert ESTIMATES["generate"](own).tokens == 2 * 3000 * 10 * 500
    score = ESTIMATES["score"](own)
    assert score.tokens == 2 * 3000 * 10 * 500
    # 2 operations a parameter but the input embedding, for two models; attention adds some per cent.
    products = 2 * 2 * (LLAMA3_8B.parameters - LLAMA3_8B.embedding) * 2 * 3000 * (200 + 10 * 500)
    assert products < score.operations < 1.05 * products
    train = ESTIMATES["train"](own)
    assert train.tokens == pytest.approx(0.95 * 2 * 3000 * (150 + 2 * 500), rel=0.01)


def test_a_training_has_the_passes_that_it_is_set_to() -> None:
    def operations(**train: Any) -> float:
        return ESTIMATES["train"](setting(H100, train=TREE["train"] | train)).operations

    plain = operations(gradient_checkpointing=False, reference_mode="cached")  # one forward pass, two backward
    assert operations(gradient_checkpointing=True, reference_mode="cached") == pytest.approx(plain * 4 / 3)
    assert operations(gradient_checkpointing=False) == pytest.approx(plain * 4 / 3)
    assert operations(gradient_checkpointing=False, loss_type="simpo") == pytest.approx(plain)
    assert operations(gradient_checkpointing=False, reference_mode="cached", num_train_epochs=2) == pytest.approx(
        2 * plain
    )


@given(
    profile=st.sampled_from(sorted(PROFILES)),
    nodes=st.integers(1, 16),
    per_node=st.sampled_from([1, 2, 4, 8]),
    name=st.sampled_from(sorted(ESTIMATES)),
)
def test_estimates_are_finite_and_more_machines_are_not_slower_in_annotation(
    profile: str, nodes: int, per_node: int, name: str
) -> None:
    own = setting(Machines(PROFILES[profile], nodes, per_node))
    own = replace(own, lengths={**own.lengths, "en": SPANISH})
    found = ESTIMATES[name](own)
    for value in (found.tokens, found.operations, found.seconds, found.fixed, found.disk, found.scratch, found.unit):
        assert math.isfinite(value)
        assert value >= 0
    assert all(value >= 0 for value in found.memory.values())
    if name in ("generate", "translate", "score"):
        more = replace(own, machines=Machines(PROFILES[profile], 2 * nodes, per_node))
        assert ESTIMATES[name](more).seconds <= 1.01 * found.seconds


def test_every_response_is_translated_once() -> None:
    """With three languages: English into two, and two into English."""
    own = setting(H100, languages=["es", "de", "en"], pair={"by": "translations"})
    own = replace(own, lengths={**own.lengths, "en": SPANISH})
    assert ESTIMATES["translate"](own).tokens == 4 * 3000 * 10 * 500


@pytest.mark.parametrize(
    ("pair", "factor"),
    [
        ({"per_prompt": 3}, 3),
        ({"per_prompt": 9}, 5),  # ten samples have five pairs
        ({"keep": 0.5}, 0.5),
        ({"keep": {"es": 0.2}}, 0.6),  # of two languages
        ({"per_prompt": 2, "keep": 0.25}, 0.5),
    ],
)
def test_training_grows_with_the_pairs_of_a_prompt_and_the_share_that_is_kept(
    pair: dict[str, Any], factor: float
) -> None:
    plain, own = (ESTIMATES["train"](setting(H100, pair=given)).tokens for given in ({}, pair))
    assert own == pytest.approx(factor * plain, rel=0.01)


def test_questions_to_a_judge_are_counted_and_not_timed() -> None:
    own = setting(H100, score={"reward": "judge"}, judge={"model": "j"})
    found = ESTIMATES["score"](own)
    assert (found.seconds, found.note) == (0, "60,000 questions to the endpoint, not timed")


def test_translations_are_sampled_too_and_english_ones_are_not() -> None:
    own = setting(H100, languages=["es", "en"])
    own = replace(own, lengths={"es": SPANISH, "en": SPANISH})
    translated = ESTIMATES["score"](
        replace(own, config=Config.model_validate(TREE | {"score": {"reward": "translate"}}))
    )
    assert translated.tokens == ESTIMATES["score"](own).tokens / 2
    assert translated.seconds > ESTIMATES["score"](own).seconds / 2


def test_a_reward_model_is_one_pass_and_several_rewards_are_added() -> None:
    own = setting(H100)
    implicit = ESTIMATES["score"](own)

    def scored(reward: Any) -> Estimate:
        config = Config.model_validate(TREE | {"score": {"reward": reward, "model": "rm"}})
        return ESTIMATES["score"](replace(own, config=config, rater=own.shape))

    rated = scored("model")
    assert rated.operations == pytest.approx(implicit.operations / 2)
    assert rated.memory == implicit.memory  # the policy that sampled stays beside the reward model
    both = scored({"crosslingual": 1, "model": 1})
    assert both.operations == pytest.approx(implicit.operations + rated.operations)
    assert both.memory == implicit.memory
    assert both.tokens == implicit.tokens
    start = replace(own, iteration=0, compared=[SPANISH])
    rated_too = ESTIMATES["evaluate"](replace(start, rater=own.shape))
    assert rated_too.operations > ESTIMATES["evaluate"](start).operations
    later = replace(start, iteration=1)
    assert ESTIMATES["evaluate"](replace(later, rater=own.shape)) == ESTIMATES["evaluate"](later)


def test_float32_takes_longer_on_gpus_and_the_reference_has_the_precision_of_training() -> None:
    bfloat16, float32 = setting(H100), setting(H100, score={"dtype": "float32"})
    assert ESTIMATES["score"](float32).seconds > 4 * ESTIMATES["score"](bfloat16).seconds
    assert ESTIMATES["reference"](float32) == ESTIMATES["reference"](bfloat16)


def test_saves_are_a_part_of_the_work_and_not_of_the_start() -> None:
    often = ESTIMATES["train"](setting(H100, train=TREE["train"] | {"save_steps": 10}))
    never = ESTIMATES["train"](setting(H100))
    assert (often.fixed, often.unit) == (never.fixed, never.unit)
    assert often.seconds > never.seconds


def test_held_out_answers_are_sampled_and_scored() -> None:
    own = setting(H100)
    answered = ESTIMATES["evaluate"](own)
    compared = ESTIMATES["evaluate"](replace(own, compared=[SPANISH]))
    assert answered.tokens > SPANISH.prompts * SPANISH.response
    assert compared.seconds > answered.seconds
    assert ESTIMATES["evaluate"](replace(own, iteration=0, compared=[SPANISH])).operations > compared.operations
    assert ESTIMATES["judge"](own).note.startswith("6,000 questions to ")

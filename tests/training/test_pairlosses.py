"""The configured losses are TRL's, add up by their weights, and have known values where both models are equal."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, get_args

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import required
from xlr.maths.losses import kl_estimate
from xlr.maths.noise import BFLOAT16_TOKEN_SD, allowed_loss_difference
from xlr.settings.trainconfig import LossType, TrainConfig
from xlr.training.pairlosses import AVERAGED, at_zero, pair_losses

NAMES: tuple[LossType, ...] = get_args(LossType)
SMOOTHED = ("robust", "exo_pair")
# Chosen and rejected under the policy, then under the reference, in nats; and their tokens.
LOGPS, REFERENCE, LENGTHS = (-10.0, -14.0), (-12.0, -13.0), (4, 7)


def settings(name: LossType | tuple[LossType, ...], beta: float = 0.1, **own: Any) -> TrainConfig:
    smoothing = 0.2 if isinstance(name, str) and name in SMOOTHED else 0.0
    return TrainConfig.model_validate({"loss_type": name, "beta": beta, "label_smoothing": smoothing} | own)


def tensors(*rows: tuple[float, float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([row], dtype=torch.float64) for row in rows)


def trl_loss(train: TrainConfig) -> float:
    """The loss that TRL's trainers compute of the same numbers, in float64, by their own methods."""
    required("trl")
    if train.loss_type == "simpo":
        from trl.experimental.cpo import CPOTrainer

        own = SimpleNamespace(alpha=0.0, beta=train.beta, loss_type="simpo", simpo_gamma=train.simpo_gamma)
        own.label_smoothing, own.accelerator = 0.0, SimpleNamespace(device=torch.device("cpu"))
        means = [
            torch.tensor([logp / length], dtype=torch.float64) for logp, length in zip(LOGPS, LENGTHS, strict=True)
        ]
        return float(CPOTrainer.cpo_loss(own, *means)[0])
    if train.loss_type == "kto":
        return trl_kto(train, 0.0)
    from trl.trainer.dpo_trainer import DPOTrainer

    # A prompt of one token; the first token of each response has its whole log-probability.
    longest = max(LENGTHS)
    mask = torch.tensor([[0] + [1] * length + [0] * (longest - length) for length in LENGTHS])
    each = torch.zeros(2, longest, dtype=torch.float64)
    each[:, 0] = torch.tensor(LOGPS, dtype=torch.float64)
    outputs = SimpleNamespace(log_probs=each, entropy=each, mean_logits=each, is_top1=each > 0)

    class Model:
        training = True

        def __call__(self, **_: Any) -> SimpleNamespace:
            return outputs

    own = SimpleNamespace(
        model=Model(),
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=list(train.loss_types),
        loss_weights=[weight for _, weight in train.losses],
        beta=train.beta,
        label_smoothing=train.label_smoothing,
        args=SimpleNamespace(discopop_tau=train.discopop_tau),
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    chosen, rejected = (torch.tensor([logp], dtype=torch.float64) for logp in REFERENCE)
    ids = torch.zeros_like(mask)
    inputs = {"input_ids": ids, "attention_mask": ids, "completion_mask": mask}
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return float(DPOTrainer._compute_loss(own, own.model, inputs, return_outputs=False))


def trl_kto(train: TrainConfig, kl: float) -> float:
    """The loss of TRL's KTOTrainer of both responses together, where policy and reference differ by `kl` on others."""
    from trl.trainer.kto_trainer import KTOTrainer

    each = torch.zeros(2, 3, dtype=torch.float64)
    each[:, 0] = torch.tensor(LOGPS, dtype=torch.float64)
    outputs = SimpleNamespace(log_probs=each, entropy=each, mean_logits=each)

    class Model:
        training = True

        def __call__(self, **_: Any) -> SimpleNamespace:
            return outputs

    own = SimpleNamespace(
        model=Model(),
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        _compute_kl_logps=lambda *_: torch.full((2,), kl - 7.0, dtype=torch.float64),
        loss_type="kto",
        beta=train.beta,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    ids = torch.zeros(2, 4, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": ids, "completion_mask": torch.tensor([[0, 1, 1, 1]] * 2)}
    inputs |= {"label": torch.tensor([True, False]), "ref_logps": torch.tensor(REFERENCE, dtype=torch.float64)}
    inputs["ref_KL_logps"] = torch.full((2,), -7.0, dtype=torch.float64)
    return 2 * float(KTOTrainer._compute_loss(own, own.model, inputs, return_outputs=False))  # TRL's mean is of each


@pytest.mark.parametrize("kl", [-0.5, 0.0, 0.3, 2.0])
def test_kto_with_its_reference_point_is_that_of_trl(kl: float) -> None:
    required("trl")
    train = settings("kto", 0.3)
    point = kl_estimate(*torch.tensor([2 * kl, 2.0], dtype=torch.float64))
    found = pair_losses(train, *tensors(LOGPS, REFERENCE, LENGTHS), point).item()
    assert found == pytest.approx(trl_kto(train, kl), rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_that_of_trl(name: LossType, beta: float) -> None:
    train = settings(name, beta)
    found = pair_losses(train, *tensors(LOGPS, REFERENCE, LENGTHS)).item()
    # TRL computes EXO's label in float32.
    assert found == pytest.approx(trl_loss(train), rel=1e-6 if name == "exo_pair" else 1e-12)


def test_losses_add_up_by_their_weights_as_in_trl() -> None:
    train = settings(("hinge", "ipo", "apo_down"), loss_weights=(0.5, 0.02, 3.0))
    found = pair_losses(train, *tensors(LOGPS, REFERENCE, LENGTHS)).item()
    assert found == pytest.approx(trl_loss(train), rel=1e-12)
    own = [pair_losses(settings(name), *tensors(LOGPS, REFERENCE, LENGTHS)).item() for name in train.loss_types]
    assert found == pytest.approx(0.5 * own[0] + 0.02 * own[1] + 3 * own[2], rel=1e-12)
    alike = settings(("hinge", "ipo", "apo_down"))
    assert pair_losses(alike, *tensors(LOGPS, REFERENCE, LENGTHS)).item() == pytest.approx(sum(own), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_losses_of_means_are_of_log_probabilities_divided_by_lengths(name: LossType) -> None:
    logps, reference, lengths = tensors(LOGPS, REFERENCE, LENGTHS)
    once = pair_losses(settings(name), logps, reference, lengths)
    twice = pair_losses(settings(name), 2 * logps, 2 * reference, 2 * lengths)
    assert (once.item() == pytest.approx(twice.item(), rel=1e-12)) == (name in AVERAGED)


@pytest.mark.parametrize("name", NAMES)
def test_only_simpo_ignores_the_reference(name: LossType) -> None:
    logps, reference, other, lengths = tensors(LOGPS, REFERENCE, (-3.0, -33.0), LENGTHS)
    same = torch.equal(
        pair_losses(settings(name), logps, reference, lengths), pair_losses(settings(name), logps, other, lengths)
    )
    assert same == (name == "simpo")


@pytest.mark.parametrize("name", NAMES)
@hypothesis.settings(max_examples=30, deadline=None)
@given(gain=st.floats(1, 100))
def test_only_the_losses_of_a_difference_ignore_what_both_responses_gain(name: LossType, gain: float) -> None:
    logps, reference = tensors(LOGPS, REFERENCE)
    lengths = torch.full_like(logps, 5)
    before, after = (pair_losses(settings(name), each, reference, lengths).item() for each in (logps, logps + gain))
    of_both = name in ("apo_zero", "apo_down", "sppo_hard", "nca_pair", "bco_pair", "kto")
    assert (after == pytest.approx(before, rel=1e-9)) != of_both


LN2 = math.log(2)


@pytest.mark.parametrize(
    ("name", "value", "slope", "curvature"),
    [
        ("sigmoid", LN2, 0.1, 0.01),
        ("sigmoid_norm", LN2, 0.1, 0.01),
        ("robust", LN2, 0.1 / 0.6, 0.01),
        ("hinge", 1, 0.2, 0),
        ("ipo", 6.25, 5, 2),
        ("exo_pair", -LN2 - math.log(0.2 * 0.8) / 2, 0.2 / 4 * math.log(0.8 / 0.2), 0.01),
        ("discopop", LN2 / 2 + 1 / 2, 0.2 * ((1 - LN2) / (4 * 0.05) - 3 / 4), 0.04 * (5 / 8 - 1 / (4 * 0.05))),
        ("apo_zero", 1, 0.05, 0),
        ("apo_down", 1, 0.05, 0),
        ("sppo_hard", 12.5, 5, 2),
        ("nca_pair", 2 * LN2, 0.05, 0.015),
        ("bco_pair", 2 * LN2, 0.1, 0.01),
        ("kto", 1, 0.05, 0),
    ],
)
def test_a_loss_at_zero_by_hand(name: LossType, value: float, slope: float, curvature: float) -> None:
    zero = at_zero(settings(name, beta=0.2), name, 1.0)
    assert zero == pytest.approx((value, slope, abs(curvature)), rel=1e-9, abs=1e-12)
    assert at_zero(settings(name, beta=0.2), name, 3.0) == pytest.approx([3 * part for part in zero], rel=1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "simpo"])
def test_a_loss_at_zero_is_that_of_any_data_if_the_policy_is_the_reference(name: LossType) -> None:
    logps, lengths = tensors(LOGPS, LENGTHS)
    train = settings(name)
    expected = at_zero(train, name, 1.0).value
    assert pair_losses(train, logps, logps.clone(), lengths).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pairs", [4, 512])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "simpo"])
def test_rounding_of_equal_models_is_allowed_and_another_reference_is_not(name: LossType, pairs: int) -> None:
    """Log-ratios of 500 tokens with the errors of bfloat16, in 500 first steps."""
    train, tokens = settings(name), 500
    generator = torch.Generator().manual_seed(pairs)
    errors_B2 = BFLOAT16_TOKEN_SD * math.sqrt(tokens) * torch.randn(500 * pairs, 2, generator=generator).double()
    lengths_B2 = torch.full_like(errors_B2, tokens)
    zero = at_zero(train, name, 1.0)
    counted = 2 * pairs if name in AVERAGED else 2 * pairs * tokens
    allowed = allowed_loss_difference([(zero, counted)], pairs, bfloat16=True)
    found_R = pair_losses(train, errors_B2, torch.zeros_like(errors_B2), lengths_B2).view(500, pairs).mean(1)
    assert (found_R - zero.value).abs().max().item() < allowed
    wrong = pair_losses(train, errors_B2 + torch.tensor([0.0, 300.0]), torch.zeros_like(errors_B2), lengths_B2)
    assert abs(wrong.mean().item() - zero.value) > allowed

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlr.maths.losses import (
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    discopop_loss,
    dpo_logits,
    exo_pair_loss,
    hinge_loss,
    ipo_loss,
    kl_estimate,
    kto_loss,
    nca_pair_loss,
    nll,
    robust_loss,
    sigmoid_loss,
    simpo_loss,
    sppo_hard_loss,
)

LOGP = st.floats(-2000, 0)
FOUR_LOGPS = st.lists(st.tuples(LOGP, LOGP, LOGP, LOGP), min_size=1, max_size=5)


def columns(rows):
    """The columns of rows of numbers, as float64 tensors."""
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]


def oracle_sigmoid_loss(logit: float, beta: float, smoothing: float = 0.0) -> float:
    def minus_log_sigmoid(z: float) -> float:
        return math.log(1 + math.exp(-z)) if z > -30 else -z

    return (1 - smoothing) * minus_log_sigmoid(beta * logit) + smoothing * minus_log_sigmoid(-beta * logit)


def test_dpo_by_hand():
    # The policy's margin is 4, the reference's 1: logits 3, and beta * logits is 0.3.
    logits_B = dpo_logits(*columns([(-10.0, -14.0, -12.0, -13.0)]))
    assert logits_B.tolist() == [3.0]
    assert sigmoid_loss(logits_B, beta=0.1).tolist() == pytest.approx([0.5543552444685272], rel=1e-12)


def test_label_smoothing_by_hand():
    # 0.9 * -log sigmoid(0.3) + 0.1 * -log sigmoid(-0.3) = 0.9 * 0.554355... + 0.1 * 0.854355...
    loss_B = sigmoid_loss(torch.tensor([3.0], dtype=torch.float64), beta=0.1, label_smoothing=0.1)
    assert loss_B.tolist() == pytest.approx([0.5843552444685272], rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(FOUR_LOGPS, st.floats(0.01, 1), st.floats(0, 0.49))
def test_sigmoid_loss_equals_a_loop(rows, beta, smoothing):
    logits_B = dpo_logits(*columns(rows))
    expected_logits = [
        (chosen - rejected) - (ref_chosen - ref_rejected) for chosen, rejected, ref_chosen, ref_rejected in rows
    ]
    assert logits_B.tolist() == expected_logits
    expected = [oracle_sigmoid_loss(logit, beta, smoothing) for logit in expected_logits]
    assert sigmoid_loss(logits_B, beta, smoothing).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(LOGP, LOGP), min_size=1, max_size=5), st.floats(0.001, 10), st.floats(0, 0.49))
def test_loss_is_ln_2_when_the_policy_is_the_reference(rows, beta, smoothing):
    chosen_B, rejected_B = columns(rows)
    loss_B = sigmoid_loss(dpo_logits(chosen_B, rejected_B, chosen_B, rejected_B), beta, smoothing)
    assert loss_B.tolist() == pytest.approx([math.log(2)] * len(rows), rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(FOUR_LOGPS)
def test_swapping_chosen_and_rejected_negates_the_logits(rows):
    chosen_B, rejected_B, ref_chosen_B, ref_rejected_B = columns(rows)
    logits_B = dpo_logits(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B)
    assert torch.equal(dpo_logits(rejected_B, chosen_B, ref_rejected_B, ref_chosen_B), -logits_B)


def test_no_smoothing_is_the_plain_loss_and_smoothing_penalises_certainty():
    logits_B = torch.tensor([-20.0, 0.0, 20.0])
    assert torch.equal(sigmoid_loss(logits_B, 1.0), sigmoid_loss(logits_B, 1.0, 0.0))
    wrong, even, right = (sigmoid_loss(logits_B, 1.0, 0.1) - sigmoid_loss(logits_B, 1.0)).tolist()
    assert wrong < 0
    assert even == pytest.approx(0, abs=1e-6)
    assert right > 0


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_gradient_pushes_chosen_up_and_rejected_down_by_beta_sigmoid(beta):
    logps = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (-10.0, -14.0, -12.0, -13.0)]
    sigmoid_loss(dpo_logits(*logps), beta).sum().backward()
    push = beta / (1 + math.exp(beta * 3))
    assert [logp.grad.item() for logp in logps] == pytest.approx([-push, push, push, -push], rel=1e-9)


def test_ipo_by_hand():
    # 1 / (2 * 0.1) = 5: (3 - 5)^2, (5 - 5)^2, (-1 - 5)^2.
    assert ipo_loss(torch.tensor([3.0, 5.0, -1.0]), beta=0.1).tolist() == pytest.approx([4.0, 0.0, 36.0])
    assert ipo_loss(torch.tensor([3.0]), beta=0.5).tolist() == pytest.approx([4.0])


def test_nll_by_hand():
    loss_B = nll(torch.tensor([-12.0, -5.0, -0.0]), torch.tensor([4, 1, 3]))
    assert loss_B.tolist() == pytest.approx([3.0, 5.0, 0.0])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(LOGP, st.integers(1, 500)), min_size=1, max_size=5))
def test_nll_equals_a_loop(rows):
    logps = torch.tensor([logp for logp, _ in rows], dtype=torch.float64)
    lengths = torch.tensor([length for _, length in rows])
    assert nll(logps, lengths).tolist() == pytest.approx([-logp / length for logp, length in rows], rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("logit", [-1e6, -1e4, 1e4, 1e6])
def test_very_large_logits_give_a_finite_loss_and_gradient(logit, smoothing):
    logits_B = torch.tensor([logit], requires_grad=True)
    loss_B = sigmoid_loss(logits_B, 1.0, smoothing)
    loss_B.sum().backward()
    assert loss_B.item() == pytest.approx(oracle_limit(logit, smoothing), rel=1e-6)
    assert logits_B.grad.item() == pytest.approx(smoothing if logit > 0 else smoothing - 1, abs=1e-6)


def oracle_limit(logit: float, smoothing: float) -> float:
    """The loss at beta 1 far from zero, where -log sigmoid(z) is max(0, -z)."""
    return (1 - smoothing) * max(0.0, -logit) + smoothing * max(0.0, logit)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


SMOOTHING, TAU, GAMMA = 0.1, 0.05, 0.7


def of_difference(loss, **own):
    """A loss of the difference, as a function of chosen and rejected."""
    return lambda chosen, rejected, beta: loss(chosen - rejected, beta, **own)


# Name -> the loss of chosen and rejected at some beta, and the published formula in plain numbers.
LOSSES = {
    "sigmoid": (of_difference(sigmoid_loss), lambda c, r, beta: -math.log(sigmoid(beta * (c - r)))),
    "ipo": (of_difference(ipo_loss), lambda c, r, beta: (c - r - 1 / (2 * beta)) ** 2),
    "hinge": (of_difference(hinge_loss), lambda c, r, beta: max(0.0, 1 - beta * (c - r))),
    "robust": (
        of_difference(robust_loss, label_smoothing=SMOOTHING),
        lambda c, r, beta: (
            (-0.9 * math.log(sigmoid(beta * (c - r))) + 0.1 * math.log(sigmoid(beta * (r - c)))) / (1 - 0.2)
        ),
    ),
    "exo_pair": (
        of_difference(exo_pair_loss, label_smoothing=SMOOTHING),
        lambda c, r, beta: (
            sigmoid(beta * (c - r)) * math.log(sigmoid(beta * (c - r)) / 0.9)
            + sigmoid(beta * (r - c)) * math.log(sigmoid(beta * (r - c)) / 0.1)
        ),
    ),
    "discopop": (
        of_difference(discopop_loss, tau=TAU),
        lambda c, r, beta: (
            (1 - sigmoid(beta * (c - r) / 0.05)) * math.log(1 + math.exp(-beta * (c - r)))
            + sigmoid(beta * (c - r) / 0.05) * math.exp(-beta * (c - r))
        ),
    ),
    "simpo": (
        partial(simpo_loss, gamma=GAMMA),
        lambda c, r, beta: -math.log(sigmoid(beta * c - beta * r - GAMMA)),
    ),
    "apo_zero": (apo_zero_loss, lambda c, r, beta: 1 - sigmoid(beta * c) + sigmoid(beta * r)),
    "apo_down": (apo_down_loss, lambda c, r, beta: sigmoid(beta * c) + 1 - sigmoid(beta * (c - r))),
    "sppo_hard": (sppo_hard_loss, lambda c, r, beta: (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2),
    "nca_pair": (
        nca_pair_loss,
        lambda c, r, beta: (
            -math.log(sigmoid(beta * c)) - math.log(sigmoid(-beta * c)) / 2 - math.log(sigmoid(-beta * r)) / 2
        ),
    ),
    "kto": (
        partial(kto_loss, reference_point=0.4),
        lambda c, r, beta: 1 - sigmoid(beta * (c - 0.4)) + 1 - sigmoid(beta * (0.4 - r)),
    ),
    "bco_pair": (
        bco_pair_loss,
        lambda c, r, beta: -math.log(sigmoid(beta * c)) - math.log(sigmoid(-beta * r)),
    ),
}
EACH = pytest.mark.parametrize("name", LOSSES)
# Falls as the chosen response becomes likelier, and rises as the rejected one does, for all log-ratios.
MONOTONE = ("sigmoid", "hinge", "simpo", "apo_zero", "bco_pair", "kto")
RATIO, STRENGTH = st.floats(-40, 40), st.floats(0.05, 0.5)
RATIOS = st.lists(st.tuples(RATIO, RATIO), min_size=1, max_size=4)


@EACH
@settings(max_examples=50, deadline=None)
@given(rows=RATIOS, beta=STRENGTH)
def test_a_loss_equals_its_formula(name, rows, beta):
    loss, formula = LOSSES[name]
    expected = [formula(chosen, rejected, beta) for chosen, rejected in rows]
    assert loss(*columns(rows), beta).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@EACH
def test_the_gradient_is_that_of_finite_differences(name):
    loss, _ = LOSSES[name]
    ratios = columns([(3.0, -2.0), (-1.5, 4.0), (0.3, 0.1), (-6.0, -7.0)])
    inputs = tuple(column.requires_grad_() for column in ratios)
    assert torch.autograd.gradcheck(partial(loss, beta=0.3), inputs)


@pytest.mark.parametrize("name", MONOTONE)
@settings(max_examples=30, deadline=None)
@given(chosen=RATIO, rejected=RATIO, gain=st.floats(0.01, 20), beta=STRENGTH)
def test_a_loss_falls_with_the_chosen_and_rises_with_the_rejected_response(name, chosen, rejected, gain, beta):
    loss, _ = LOSSES[name]
    here, likelier = columns([(chosen, chosen + gain)]), columns([(rejected, rejected + gain)])
    first = loss(here[0], likelier[0], beta)
    assert loss(here[1], likelier[0], beta) <= first
    assert loss(here[0], likelier[1], beta) >= first


@pytest.mark.parametrize("name", ["exo_pair", "sppo_hard", "ipo", "nca_pair"])
def test_a_loss_with_a_target_is_least_there(name):
    """IPO's margin is 1 / (2 beta), SPPO's log-ratios are half of that; EXO's and NCA's sigmoids are shares."""
    loss, _ = LOSSES[name]
    target = {"exo_pair": (math.log(9) / 0.2, 0.0), "sppo_hard": (2.5, -2.5), "ipo": (2.5, 0.0)}
    # NCA: 1.5 sigmoid(beta c) = 1; the rejected response may fall without end.
    chosen, rejected = target.get(name, (math.log(2) / 0.2, -3.0))
    around = torch.tensor([chosen - 0.1, chosen, chosen + 0.1], dtype=torch.float64)
    below, least, above = loss(around, torch.full_like(around, rejected), 0.2).tolist()
    assert least < min(below, above)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"ipo", "sppo_hard"}))
@pytest.mark.parametrize("ratio", [-1e4, 1e4])
def test_very_large_log_ratios_give_a_finite_loss_and_gradient(name, ratio):
    loss, _ = LOSSES[name]
    inputs = [torch.tensor([value], requires_grad=True) for value in (ratio, -ratio)]
    value = loss(*inputs, 0.5)
    value.sum().backward()
    assert all(torch.isfinite(tensor).all() for tensor in (value, *(one.grad for one in inputs)))


@given(rows=RATIOS, beta=STRENGTH)
def test_kto_without_a_reference_point_is_apo_zero(rows, beta):
    found = kto_loss(*columns(rows), beta, 0.0).tolist()
    assert found == pytest.approx(apo_zero_loss(*columns(rows), beta).tolist(), rel=1e-9, abs=1e-12)


@given(ratios=st.lists(RATIO, max_size=6))
def test_the_reference_point_is_a_mean_and_at_least_0(ratios):
    sums = torch.tensor([math.fsum(ratios), len(ratios)], dtype=torch.float64)
    expected = max(0.0, math.fsum(ratios) / len(ratios)) if ratios else 0.0
    assert kl_estimate(*sums).item() == pytest.approx(expected)

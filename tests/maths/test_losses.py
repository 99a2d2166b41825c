import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlr.maths.losses import dpo_logits, ipo_loss, nll, sigmoid_loss

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

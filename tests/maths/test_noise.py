"""The allowances of the checks, against simulated noise."""

import math

import pytest
import torch

from xlr.maths.losses import sigmoid_loss
from xlr.maths.noise import BFLOAT16_TOKEN_SD, AtZero, allowed_difference, allowed_loss_difference


@pytest.mark.parametrize("tokens", [1, 6, 100, 2400])
def test_sound_responses_pass_and_a_wrong_token_does_not(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    errors = BFLOAT16_TOKEN_SD * torch.randn(2000, tokens, generator=generator, dtype=torch.float64)
    allowed = allowed_difference(-1.5 * tokens, tokens, bfloat16=True)
    assert errors.sum(1).abs().max().item() < allowed
    assert errors.sum(1).abs().max().item() > allowed / 3, "the allowance is wider than needed"
    assert allowed_difference(-1.5 * tokens, tokens, bfloat16=False) < 0.01 + 2e-4 * tokens


@pytest.mark.parametrize(("pairs", "beta", "tokens"), [(2, 0.1, 40), (8, 0.1, 500), (32, 0.1, 500), (32, 1.0, 2000)])
def test_the_first_loss_of_sound_pairs_passes_and_that_of_another_reference_does_not(
    pairs: int, beta: float, tokens: int
) -> None:
    generator = torch.Generator().manual_seed(pairs)
    sd = BFLOAT16_TOKEN_SD * math.sqrt(2 * tokens)
    losses = [(AtZero(math.log(2), beta / 2, beta**2 / 4), 2 * tokens * pairs)]
    allowed = allowed_loss_difference(losses, pairs, bfloat16=True)
    logits_RB = sd * torch.randn(2000, pairs, generator=generator, dtype=torch.float64)
    found_R = sigmoid_loss(logits_RB, beta).mean(1) - math.log(2)
    assert found_R.abs().max().item() < allowed
    wrong = sigmoid_loss(torch.full((pairs,), -2 * allowed / beta - 1, dtype=torch.float64), beta).mean() - math.log(2)
    assert abs(wrong.item()) > allowed
    assert allowed_loss_difference(losses, pairs, bfloat16=False) == pytest.approx(1e-3)


def test_a_large_first_loss_may_differ_in_proportion() -> None:
    large, small = (AtZero(50.0, 10.0, 2.0), 100.0), (AtZero(0.5, 0.1, 0.0), 100.0)
    assert allowed_loss_difference([large, small], 4, bfloat16=False) == pytest.approx(0.0505)
    both, one, other = (
        allowed_loss_difference(losses, 4, bfloat16=True) for losses in ([large, small], [large], [small])
    )
    assert both == pytest.approx(one + other - 1e-3 + 0.0005)

"""The check of the first loss."""

from typing import get_args

import pytest
import torch

from xlr.errors import UserError
from xlr.settings.trainconfig import LossType, TrainConfig
from xlr.training.gates import require_first_loss
from xlr.training.pairlosses import at_zero


def check(train: TrainConfig, preference_loss: float, same_models: bool = True) -> None:
    values = {"loss": preference_loss + 2 * 3.0, "nll_loss": 3.0, "num_tokens": 4000.0}
    require_first_loss(values, [1.0] * 8, train, same_models, torch.float32)


@pytest.mark.parametrize("name", [name for name in get_args(LossType) if name != "simpo"])
def test_the_first_loss_of_equal_models_passes_and_another_does_not(name: LossType) -> None:
    train = TrainConfig(loss_type=name, label_smoothing=0.1 if name == "exo_pair" else 0.0, nll_weight=2)
    expected = at_zero(train, name, 1.0).value
    check(train, expected)
    check(train, 1.1 * expected, same_models=False)
    with pytest.raises(UserError, match=f"is {1.1 * expected:.6f}, not {expected:.6f}, although"):
        check(train, 1.1 * expected)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_first_loss_follows_the_weights_of_its_pairs(factor: float) -> None:
    """All pairs lose the same at zero, so the mean is that of the weights."""
    train, weights = TrainConfig(nll_weight=0), [factor * own for own in (0.25, 0.75, 2.0)]
    loss = factor * at_zero(train, "sigmoid", 1.0).value
    require_first_loss({"loss": loss, "nll_loss": 3.0, "num_tokens": 900.0}, weights, train, True, torch.float32)
    wrong = {"loss": 1.1 * loss, "nll_loss": 3.0, "num_tokens": 900.0}
    with pytest.raises(UserError, match=r"at step 0 is"):
        require_first_loss(wrong, weights, train, True, torch.float32)


def test_several_losses_add_up() -> None:
    train = TrainConfig(loss_type=("hinge", "apo_zero"), loss_weights=(0.5, 3.0), nll_weight=2)
    check(train, 3.5)
    with pytest.raises(UserError, match=r"is 2\.000000, not 3\.500000"):
        check(train, 2.0)


@pytest.mark.parametrize("loss_type", ["simpo", ("sigmoid", "simpo")])
def test_a_loss_with_simpo_is_not_checked(loss_type: LossType | tuple[LossType, ...]) -> None:
    check(TrainConfig(loss_type=loss_type, nll_weight=2), 7.0)

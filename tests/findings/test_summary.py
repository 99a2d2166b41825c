"""The facts of a run in words."""

from typing import Any

import pytest

from xlr.findings import summary

OWN = {"train.loss_weights": None, "train.beta": 0.1, "train.nll_weight": 1.0, "train.reference": "initial"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"train.loss_type": "sigmoid"}, "sigmoid (β = 0.1) + 1 · NLL of chosen; reference: π_I"),
        ({"train.loss_type": "simpo"}, "simpo (β = 0.1) + 1 · NLL of chosen; reference: none"),
        (
            {"train.loss_type": ["hinge", "simpo"], "train.loss_weights": [1.0, 0.5], "train.nll_weight": 0.0},
            "hinge + 0.5 · simpo (β = 0.1) + 0 · NLL of chosen; reference: π_I",
        ),
    ],
)
def test_the_loss_names_its_parts_and_its_reference(settings: dict[str, Any], text: str) -> None:
    found: Any = {"settings": OWN | settings}
    assert summary._loss(found) == text


def test_settings_by_iteration_are_told_one_after_the_other() -> None:
    found: Any = {"settings": OWN | {"train.loss_type": "sigmoid", "train.beta": [0.1, 0.2]}}
    assert summary._loss(found) == "sigmoid (β = 0.1, then 0.2) + 1 · NLL of chosen; reference: π_I"
    assert summary._each([True, False], {True: "controlled", False: "none"}.__getitem__) == "controlled, then none"

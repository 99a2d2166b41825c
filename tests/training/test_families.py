"""Every family of models trains under ZeRO-3: its gradients are those without DeepSpeed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.test_families import EXAMPLES, FAMILIES, tiny
from tests.training.conftest import OnlyRank
from tests.training.test_engine import gradient
from xlr.model.logprobmodel import LogprobModel
from xlr.packing.batch import batch
from xlr.settings.config import TrainConfig
from xlr.shipped import shipped
from xlr.zero import engine


@pytest.fixture(scope="module")
def gathering(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """ZeRO-3 that gathers every weight for each use, as on many GPUs."""
    tree = json.loads(shipped("ds_configs", "zero3.json").read_text(encoding="utf-8"))
    tree["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
    file = tmp_path_factory.mktemp("zero") / "zero3.json"
    file.write_text(json.dumps(tree), encoding="utf-8")
    return TrainConfig(ds_config=str(file))


@pytest.mark.parametrize(
    ("model_type", "attention", "own"), [row[1:] for row in FAMILIES], ids=[r[1] for r in FAMILIES]
)
def test_gradients_under_zero3_are_those_without_it(
    model_type: str, attention: str, own: dict[str, Any], gathering: TrainConfig, only_rank: OnlyRank, tmp_path: Path
) -> None:
    causal_lm = tiny(model_type, own, attention)
    causal_lm.save_pretrained(tmp_path)
    packed = batch(EXAMPLES, attention).to(only_rank.device)
    policy = engine.open_policy(str(tmp_path), gathering, torch.float32, attention, 3)
    logps_S = policy(packed)
    policy.backward(logps_S.mean())
    plain = LogprobModel(causal_lm)  # in evaluation mode: dropout is off in training, too
    expected_S = plain(packed)
    expected_S.mean().backward()
    assert torch.allclose(logps_S, expected_S, rtol=1e-5)
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in policy.module.named_parameters():
        own_gradient, other = gradient(policy, parameter), expected[name]
        assert (own_gradient - (0 if other is None else other)).norm() <= 1e-4 * max(own_gradient.norm(), 1e-6), name

"""Every family of models trains under ZeRO-3: its gradients are those without DeepSpeed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.test_families import EXAMPLES, FAMILIES, tiny
from tests.training.conftest import OnlyRank, gathering
from tests.training.test_engine import gradient
from xlr.model.logprobmodel import LogprobModel
from xlr.packing.batch import batch
from xlr.settings.trainconfig import TrainConfig
from xlr.zero import engine


@pytest.mark.parametrize(
    ("model_type", "attention", "own"), [row[1:] for row in FAMILIES], ids=[r[1] for r in FAMILIES]
)
def test_gradients_under_zero3_are_those_without_it(
    model_type: str, attention: str, own: dict[str, Any], only_rank: OnlyRank, tmp_path: Path
) -> None:
    causal_lm = tiny(model_type, own, attention)
    causal_lm.save_pretrained(tmp_path / "model")
    train = TrainConfig(ds_config=gathering("zero3", tmp_path))
    packed = batch(EXAMPLES, attention).to(only_rank.device)
    policy = engine.open_policy(str(tmp_path / "model"), train, torch.float32, attention, 3)
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


def test_gradients_at_two_ranks_are_those_of_one_process(tmp_path: Path) -> None:
    """Every third family: experts, state, caps and scales of logits among them."""
    chosen = FAMILIES[::3]
    for _, model_type, attention, own in chosen:
        tiny(model_type, own, attention).save_pretrained(tmp_path / model_type)
    model_types = [row[1] for row in chosen]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "tests.training.families_at_two_ranks", str(tmp_path), *model_types]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("equal: ")] == [
        f"equal: {model_type}" for model_type in model_types
    ]

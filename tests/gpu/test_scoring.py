"""Scoring on a GPU: the worker against plain passes, twice, and with compiled fused operations."""

from pathlib import Path

import pytest
import torch

from benchmarks.gpuplan.plan import random_example
from tests.gpu.conftest import DEVICE
from tests.kernels import require_kernels
from tests.model.test_fused import backward, error, fuse, make
from xlr.maths.noise import allowed_difference
from xlr.model.logprobmodel import LogprobModel, batch_logps
from xlr.model.weights import load_causal_lm
from xlr.model.worker import Worker
from xlr.selftest import material
from xlr.settings.modelconfig import SHARED_PROMPT

pytestmark = pytest.mark.gpu

EXAMPLES = [random_example(30, [20, 1, 33, 64], 1), random_example(5, [50], 2), random_example(100, [7, 8], 3)]


@pytest.fixture
def model(tmp_path: Path) -> str:
    material.write_model(tmp_path / "model", "tiny", seed=0)
    return str(tmp_path / "model")


@pytest.mark.parametrize("fused", [False, "auto"])
def test_the_worker_computes_what_a_plain_model_computes(model: str, fused: bool) -> None:
    worker = Worker(None, "bfloat16", SHARED_PROMPT, on_gpu=True, fused_operations=fused)
    found = worker.logps(model, EXAMPLES, "bfloat16")
    plain = LogprobModel(load_causal_lm(model, torch.float32, "sdpa").to(DEVICE))
    with torch.inference_mode():
        expected = batch_logps(plain, EXAMPLES, "sdpa", DEVICE).tolist()
    lengths = [len(response) for example in EXAMPLES for response in example.responses]
    for own, theirs, tokens in zip(found, expected, lengths, strict=True):
        assert abs(own - theirs) <= allowed_difference(theirs, tokens, bfloat16=True)


def test_scoring_twice_gives_the_same(model: str) -> None:
    worker = Worker(None, "bfloat16", SHARED_PROMPT, on_gpu=True)
    once, twice = (worker.logps(model, EXAMPLES, "bfloat16") for _ in range(2))
    assert once == pytest.approx(twice, abs=1e-3)  # sums are atomic, so last bits vary


@pytest.mark.parametrize("recompute", [False, True, "selective"])
def test_compiled_fused_operations_differ_by_rounding_only(recompute: bool | str) -> None:
    require_kernels()
    exact_S, exact = backward(make("llama"), SHARED_PROMPT)
    own_S, own = backward(make("llama", torch.bfloat16), SHARED_PROMPT, recompute)
    found_S, found = backward(fuse(make("llama", torch.bfloat16)), SHARED_PROMPT, recompute)
    assert error(found_S, exact_S) < 1.5 * error(own_S, exact_S) + 1e-3
    assert max(error(found[name], exact[name]) - 1.5 * error(own[name], exact[name]) for name in exact) < 1e-2

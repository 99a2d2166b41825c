"""Training on a GPU: a step against plain torch, memory against the formula, save and resume, the self-test.

Each training has a process of its own, because DeepSpeed keeps its engines' memory.
"""

import dataclasses
from pathlib import Path

import pytest

from benchmarks.gpuplan import training
from benchmarks.gpuplan.plan import Check, Setup, apart
from tests.conftest import Cli

pytestmark = pytest.mark.gpu

SMALL = [
    training.first_loss_and_probes,
    training.step_against_plain_torch,
    training.save_and_resume,
    training.gradient_that_is_not_finite,
]


@pytest.mark.parametrize("check", SMALL)
def test_a_small_training_passes_the_checks_of_the_benchmark(check: Check, setup_1b: Setup) -> None:
    found = check(dataclasses.replace(setup_1b, size="tiny"))
    assert found.verdict == "pass", (found.limit, found.figures)


@pytest.mark.parametrize("recompute", [True, "selective"])
def test_a_training_of_1b_takes_the_memory_of_the_formula(recompute: bool | str, setup_1b: Setup) -> None:
    own = training.job(setup_1b, "1b", gradient_checkpointing=recompute)
    found = apart(setup_1b, training.measure, own, 3, "varlen")
    assert found["of formula"] == pytest.approx(1, abs=0.2), found


def test_the_self_test_passes(cli: Cli, tmp_path: Path) -> None:
    result = cli("selftest", tmp_path / "test", "--shape", "1b", "--processes", 1)
    assert result.returncode == 0, result.stdout + result.stderr

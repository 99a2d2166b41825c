"""Tests that need a GPU. Without one they are skipped; `make test-gpu` makes them fail."""

import os
from pathlib import Path

import pytest
import torch

from benchmarks.gpuplan.plan import Setup

REQUIRE_GPU = os.environ.get("XLR_REQUIRE_GPU") == "1"
DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def _gpu() -> None:
    """Skip the test where torch sees no GPU, or fail it if XLR_REQUIRE_GPU=1."""
    if not torch.cuda.is_available():
        reason = "torch sees no GPU"
        if REQUIRE_GPU:
            pytest.fail(f"{reason} (XLR_REQUIRE_GPU=1)")
        pytest.skip(reason)


@pytest.fixture
def setup_1b(tmp_path: Path) -> Setup:
    """A model of 1B parameters on this GPU."""
    return Setup("1b", DEVICE, tmp_path)

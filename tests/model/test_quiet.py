"""Known messages of libraries are kept out of the output, others are shown."""

import logging
import re
import warnings
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from xlr.model.quiet import quiet

TORCH = f"{Path(torch.__file__).parent}/distributed/c10d_logger.py"
KNOWN = "`torch.distributed.all_gather_into_tensor` is deprecated. Please use `all_gather_single` instead."
NO_GPU = "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it."


def warn(text: str, category: type[Warning] = FutureWarning, file: str = TORCH) -> None:
    warnings.warn_explicit(text, category, file, 83)


@pytest.fixture(autouse=True)
def _every_warning() -> None:
    warnings.simplefilter("always")  # pytest restores it


def test_known_messages_go_to_a_file_once_and_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "debug.log"
    deepspeed, handler = logging.getLogger("DeepSpeed"), logging.StreamHandler()
    deepspeed.addHandler(handler)
    with quiet(kept):
        for _ in range(3):
            warn(KNOWN)
            deepspeed.warning(NO_GPU)
            warn("`past_key_values` is deprecated and will be removed", file="worker.py")
        assert capsys.readouterr().err == ""
        warn("`torch.distributed.all_gather_into_tensor` is wrong here")
        warn(KNOWN, UserWarning)
        warn(KNOWN, file="/home/me/torch.py")
        warn(f"{TORCH}:83: FutureWarning: {KNOWN}", file="mine.py")
        deepspeed.warning("a tensor is not contiguous")
        shown = capsys.readouterr().err
    deepspeed.removeHandler(handler)
    lines = [line for line in shown.splitlines() if not line.startswith(" ")]  # without lines of source
    assert [line.partition(": ")[2] or line for line in lines] == [
        "FutureWarning: `torch.distributed.all_gather_into_tensor` is wrong here",
        f"UserWarning: {KNOWN}",
        f"FutureWarning: {KNOWN}",
        f"FutureWarning: {TORCH}:83: FutureWarning: {KNOWN}",
        "a tensor is not contiguous",
    ]
    lines = kept.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if KNOWN in line]) == lines.count(NO_GPU) == 1
    assert sum("past_key_values" in line for line in lines) == 1


def test_afterwards_everything_is_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    bars = transformers_logging.is_progress_bar_enabled()
    with quiet():
        assert not transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.is_progress_bar_enabled() is bars
    with pytest.warns(FutureWarning, match=re.escape(KNOWN)):
        warn(KNOWN)
    assert not logging.getLogger("DeepSpeed").filters
    assert not logging.getLogger("py.warnings").filters

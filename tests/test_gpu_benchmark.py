"""The benchmark for GPUs works on a CPU in its tiny size, so that time on a GPU is not spent on its own faults."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpuplan.plan import Result, Setup, apart, judged

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
PARTS = {"A": range(1, 6), "B": range(6, 10), "C": range(10, 15)}


def test_every_check_passes_or_says_why_it_is_not_run() -> None:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--size", "tiny"],
        env=os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    # Compiled libraries print to standard output, too.
    *checks, last = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert last == json.loads(result.stdout.splitlines()[-1]) == {"passed": 14, "failed": 0, "not_run": 1}
    assert [check["check"] for check in checks] == [*range(1, 15), "imports"]
    assert checks[1]["why"] == "no GPU: only GPUs have attention by cuDNN"
    assert checks[0]["figures"]["backend"] == checks[8]["figures"]["cudnn on"] == "not run: no GPU"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("gpu")


def test_it_lists_its_checks(gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--list"])
    gpu.main()
    numbers = [f"{part} {number:2}" for part, own in PARTS.items() for number in own]
    assert [line[:4] for line in capsys.readouterr().out.splitlines()] == numbers


def test_checks_are_chosen_by_number_or_part(gpu: Any) -> None:
    assert gpu.chosen(["6", "A", "2"]) == [1, 2, 3, 4, 5, 6]


def test_a_check_that_crashes_stops_no_other(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def crash(_setup: Setup) -> Result:
        raise RuntimeError("CUDA error: no kernel image")

    def skip(_setup: Setup) -> Result:
        raise gpu.NotRunError("no GPU")

    checks = {1: crash, 2: lambda _: judged(False, "none", {}), 3: skip, 4: lambda _: judged(True, "all", {"a": 1 / 3})}
    monkeypatch.setattr(gpu, "CHECKS", checks)
    monkeypatch.setattr(gpu, "NOT_NEEDED", ("json", "no_such_module"))
    assert gpu.run([1, 2, 3, 4], Setup("tiny", torch.device("cpu"), tmp_path)) == 3
    *found, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [line["verdict"] for line in found] == ["fail", "fail", "not run", "pass", "fail"]
    assert found[0]["error"] == "RuntimeError: CUDA error: no kernel image"
    assert found[3]["figures"] == {"a": 0.3333}
    assert found[4]["found"] == ["json"]
    assert last == {"passed": 1, "failed": 3, "not_run": 1}


def test_on_gpus_trainings_have_processes_of_their_own(tmp_path: Path) -> None:
    assert apart(Setup("tiny", torch.device("cpu"), tmp_path), os.getpid) == os.getpid()
    assert apart(Setup("tiny", torch.device("cuda"), tmp_path), os.getpid) != os.getpid()

"""A run that dies just before changes of its folder, again and again, ends with the results of an undisturbed run.

`make sweep` kills it before every change, once by kill -9 and once by a power cut; otherwise before a few of them.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.judgeserver import Judge, longer, serving
from xlr import configfile, pipeline, verify
from xlr.run.context import Context
from xlr.run.files import read_json

WHOLE = bool(os.environ.get("XLR_SWEEP"))
STEP = 1 if WHOLE else 24


@dataclass
class Sweep:
    """A run that is started and killed many times."""

    config: Path
    run: Path

    def start(self, crash_at: int = 0, power: bool = False) -> tuple[int, list[str]]:
        """Start the run; return its exit code and the changes of its folder."""
        log = self.run.with_suffix(".log")
        for file in (log, Path(f"{log}.flushed")):
            if not (power and file.suffix == ".flushed"):
                file.unlink(missing_ok=True)
        crash = {"XLR_CRASH_RUN": str(self.run), "XLR_CRASH_LOG": str(log), "XLR_CRASH_AT": str(crash_at)}
        crash |= {"XLR_CRASH_POWER": "1"} if power else {}
        path = os.pathsep.join([str(Path(__file__).parent / "crash"), os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": path.rstrip(os.pathsep), "OPENAI_API_KEY": "none"}
        command = [sys.executable, "-m", "xlr", "run", str(self.config), f"run_dir={self.run}"]
        result = subprocess.run(command, env=os.environ | crash | own, capture_output=True, text=True, timeout=600)
        assert result.returncode in (0, -signal.SIGKILL), result.stdout[-3000:] + result.stderr[-3000:]
        return result.returncode, log.read_text(encoding="utf-8").splitlines()

    def context(self) -> Context:
        return Context(configfile.load(self.run, [f"run_dir={self.run}"]))

    def digests(self) -> dict[str, str]:
        context = self.context()
        folders = {str(stage): stage.artifact(context).folder for stage in pipeline.stages(context.config)}
        return {name: read_json(Path(f"{folder}.manifest.json"))["digest"] for name, folder in folders.items()}

    def leftovers(self) -> list[str]:
        """Temporary files, and folders of pieces and checkpoints."""
        folders = [path for path in self.run.glob("iter*/*.*") if path.is_dir()]
        return [str(path.relative_to(self.run)) for path in [*folders, *self.run.rglob("*.tmp")]]


@pytest.fixture(scope="module")
def judge() -> Any:
    with serving(Judge(longer)) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(tiny_models: dict[str, Path], judge: Any, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A whole run of two iterations with a cached reference, checkpoints and a judge."""
    from tests.conftest import tiny_tree

    folder = tmp_path_factory.mktemp("sweep")
    tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    tree |= {"iterations": 2, "ray": {"actors": 1}, "judge": {"model": "judge", "base_url": judge.url, "cache": None}}
    tree["prompts"]["limit"] = 3
    tree["train"] |= {"reference_mode": "cached", "save_steps": 1, "global_batch_size": 2, "processes": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    sweep = Sweep(folder / "run.yaml", folder / "undisturbed")
    code, _ = sweep.start()
    assert code == 0
    return sweep


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_a_run_that_dies_before_any_change_of_its_folder_ends_with_the_same_results(
    undisturbed: Sweep, power: bool, tmp_path: Path
) -> None:
    """The next start dies one change later than the last, counted from its own first change."""
    sweep = Sweep(undisturbed.config, tmp_path / "run")
    seen: set[str] = set()
    code, at, starts = -signal.SIGKILL, STEP // 2 + 1, 0
    while code:
        code, changes = sweep.start(at, power)
        starts += 1
        at = at + STEP if code and (not WHOLE or changes[-1] in seen) else at
        seen.add(changes[-1])
    assert sweep.digests() == undisturbed.digests()
    assert sweep.leftovers() == []
    assert list(verify.faults(sweep.context())) == []
    print(f"{starts - 1} crashes, before {len(seen)} different changes")

"""A run that dies just before changes of its folder, again and again, ends with the results of an undisturbed run.

`make sweep` kills it before every change, once by kill -9 and once by a power cut, which takes an hour each. With
XLR_SWEEP=N it is killed before every Nth. Otherwise it is killed before a few of them.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
import yaml

from tests.judgeserver import Judge, longer, serving
from xlr import configfile, pipeline
from xlr.commands import verify
from xlr.errors import UserError
from xlr.findings.collect import collect
from xlr.run.context import Context
from xlr.run.files import read_json

STEP = int(os.environ.get("XLR_SWEEP", "180"))


@dataclass
class Sweep:
    """A run that is started and killed many times."""

    config: Path
    run: Path

    @property
    def changes(self) -> list[str]:
        """The different changes of the folder in all starts."""
        return self.run.with_suffix(".seen").read_text(encoding="utf-8").splitlines()

    def start(self, step: int = 0, power: bool = False) -> int:
        """Start the run; it dies before the next change that is a multiple of `step`. Return its exit code."""
        crash = {"XLR_CRASH_RUN": self.run, "XLR_CRASH_SEEN": self.run.with_suffix(".seen"), "XLR_CRASH_STEP": step}
        crash |= {"XLR_CRASH_POWER": 1} if power else {}
        path = os.pathsep.join([str(Path(__file__).parent / "crash"), os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": path.rstrip(os.pathsep), "OPENAI_API_KEY": "none"}
        command = [sys.executable, "-m", "xlr", "run", str(self.config), f"run_dir={self.run}"]
        environment = os.environ | {name: str(value) for name, value in crash.items()} | own
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert result.returncode in (0, -signal.SIGKILL), result.stdout[-3000:] + result.stderr[-3000:]
        return result.returncode

    def context(self) -> Context:
        return Context(configfile.load(self.run, [f"run_dir={self.run}"]))

    def digests(self) -> dict[str, str]:
        context = self.context()
        folders = {str(stage): stage.artifact(context).folder for stage in pipeline.stages(context.config)}
        return {name: read_json(Path(f"{folder}.manifest.json"))["digest"] for name, folder in folders.items()}

    def leftovers(self) -> list[str]:
        """Temporary files, and folders of pieces and checkpoints."""
        folders = [path for path in self.run.glob("iter*/*.*") if path.is_dir()]
        return [str(path.relative_to(self.run)) for path in [*folders, *self.run.rglob("*.tmp"), *self.run.glob(".*")]]


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
    assert sweep.start() == 0
    return sweep


@pytest.mark.timeout(0 if STEP < 180 else 1800)
@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_a_run_that_dies_before_any_change_of_its_folder_ends_with_the_same_results(
    undisturbed: Sweep, power: bool, tmp_path: Path
) -> None:
    """Each start dies before a change that no start has made or died at before."""
    sweep, starts = Sweep(undisturbed.config, tmp_path / "run"), 0
    while sweep.start(STEP, power):
        starts += 1
    assert starts == sum(number % STEP == STEP // 2 for number in range(1, len(sweep.changes) + 1))
    assert sweep.digests() == undisturbed.digests()
    assert sweep.leftovers() == []
    assert list(verify.faults(sweep.context())) == []
    print(f"{starts} crashes, of {len(sweep.changes)} different changes")


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = {
    "a bit": flipped,
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "another file": lambda data: b'{"a": [1]}\n',
}
# Files without numbers of the run: what xlr writes for people, and what it makes anew at every start.
OF_NO_ARTEFACT = ("config.yaml", "report.", "logs/", "leases/", "tensorboard/", "verdicts/", "metrics.jsonl")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_any_file_of_a_run_is_noticed_or_has_no_effect(
    undisturbed: Sweep, damage: str, tmp_path: Path
) -> None:
    """`xlr verify` names every damaged file that holds results, and no command ends with another error."""
    shutil.copytree(undisturbed.run, tmp_path / "run")
    sweep = Sweep(undisturbed.config, tmp_path / "run")
    tried = 0
    for path in sorted(path for path in sweep.run.rglob("*") if path.is_file()):
        name, whole = str(path.relative_to(sweep.run)), path.read_bytes()
        if DAMAGES[damage](whole) == whole:
            continue
        path.write_bytes(DAMAGES[damage](whole))
        found = found_in(sweep)
        path.write_bytes(whole)
        if not any(part in name for part in OF_NO_ARTEFACT):
            assert any(path.name in fault for fault in found), f"{name}: not noticed"
        tried += 1
    assert found_in(sweep) == []
    print(f"{damage}: {tried} files")


def found_in(sweep: Sweep) -> list[str]:
    """The faults that verifying, the status, and collecting the report's numbers find."""
    found = []
    with contextlib.suppress(UserError):
        found += [fault for _, fault in verify.faults(sweep.context())]
    for look in (lambda: pipeline.status(sweep.context()), lambda: collected(sweep.context())):
        try:
            look()
        except UserError as error:
            found.append(str(error))
    return found


def collected(context: Context) -> object:
    return collect(context.config, context.run, "run")


KILLS = int(os.environ.get("XLR_CHAOS", "0"))


@pytest.mark.skipif(not KILLS, reason="`make chaos` runs it")
@pytest.mark.timeout(4 * 3600)
def test_any_process_of_a_run_may_be_killed_at_any_time(undisturbed: Sweep, tmp_path: Path) -> None:
    """Real Ray with two workers, two ranks; one process in turn is killed, chosen at random with its time."""
    random, kills, runs, starts = Random(0), 0, 0, 0
    killed: Counter[str] = Counter()
    assert _started(undisturbed.config, tmp_path / "whole").wait(900) == 0
    expected = Sweep(undisturbed.config, tmp_path / "whole").digests()
    while kills < KILLS:
        run = tmp_path / f"run{runs}"
        while True:
            starts += 1
            process = _started(undisturbed.config, run)
            while process.poll() is None and kills < KILLS:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(random.uniform(0.5, 12))
                if victims := sorted(_processes(run), key=lambda one: one[0]):
                    pid, name = random.choice(victims)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed[name] += 1
                        kills += 1
            if process.wait(600) == 0:
                break
        sweep = Sweep(undisturbed.config, run)
        assert sweep.digests() == expected
        assert sweep.leftovers() == []
        runs += 1
    print(f"{kills} processes killed in {starts} starts of {runs} runs, all equal: {dict(killed)}")


def _started(config: Path, run: Path) -> "subprocess.Popen[bytes]":
    two = ["ray.actors=2", "ray.cpus_per_actor=1", "train.processes=2"]
    command = [sys.executable, "-m", "xlr", "run", str(config), f"run_dir={run}", *two]
    own = {"XLR_CHAOS_RUN": str(run), "OPENAI_API_KEY": "none"}
    with run.with_suffix(".out").open("ab") as output:
        return subprocess.Popen(command, env=os.environ | own, stdout=output, stderr=output, start_new_session=True)


def _processes(run: Path) -> Iterator[tuple[int, str]]:
    """Process id and name of everything that belongs to a run."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("XLR_CHAOS_RUN") == str(run) and process.status() != psutil.STATUS_ZOMBIE:
                yield process.pid, process.name()

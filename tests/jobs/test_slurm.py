"""Whole chains of jobs on a real Slurm: undisturbed, interrupted, failing, cancelled, out of time."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import slurmcluster
from tests.conftest import missing, tiny_tree
from tests.rows import read_rows
from tests.slurmcluster import NODES, SlurmCluster
from tests.waiting import wait_until
from xlr.cluster import slurm as scheduler
from xlr.cluster.slurm import JobState
from xlr.records import Response
from xlr.run.files import read_json
from xlr.tracking.metricslog import whole_rows

MODELS = ("iter1/model", "iter2/model")
PAIR = ("annotate-1", "evaluate-0")  # jobs that run at the same time, both on the first node
PAUSE = 0.1  # seconds between polls of Slurm
LONG = 300  # seconds that a chain may need for its next step on a busy machine


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all nodes see."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if reason := slurmcluster.lacking():
        missing(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # the path must be short: it holds sockets
    with slurmcluster.running(folder, [tmp_path_factory.getbasetemp()]) as started:
        yield started
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tree(tiny_models: dict[str, Path], shared: Path) -> dict[str, Any]:
    """Two iterations; annotate and train each on both nodes, evaluate on one."""
    found = tiny_tree.__wrapped__(tiny_models, shared)  # type: ignore[attr-defined]
    found["iterations"] = 2
    found["evaluate"].pop("preferences")
    del found["ray"]  # a worker on each node
    found["generate"]["batch_size"] = 2  # twelve pieces, so that there is time to interrupt it
    found["train"] |= {"num_train_epochs": 4, "save_steps": 1}
    found["slurm"] = {"nodes": 2, "cpus": 1, "jobs": {"evaluate": {"nodes": 1}}}
    return dict(found)


class Run:
    """A submitted run. Its jobs start once `xlr submit` has ended, which a busy machine may take a minute to do."""

    def __init__(self, shared: Path, name: str, tree: dict[str, Any], *overrides: str):
        self.path = shared / name
        config = shared / f"{name}.yaml"
        held = tree | {"run_dir": str(self.path), "slurm": tree["slurm"] | {"options": ["--hold"]}}
        config.write_text(yaml.safe_dump(held), encoding="utf-8")
        self.command("submit", config, *overrides)
        self.ids = {job["name"]: job["id"] for job in read_json(self.path / "slurm" / "jobs.json")["jobs"]}
        subprocess.run(["scontrol", "release", *self.ids.values()], check=True)

    def command(self, name: str, *arguments: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
        """`xlr NAME` on this run."""
        command = [sys.executable, "-m", "xlr", name, *map(str, arguments or [self.path])]
        environment = os.environ | {"COLUMNS": "250"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == code, result.stdout + result.stderr
        return result

    def job(self, name: str) -> JobState:
        found = scheduler.job(self.ids[name])
        assert found
        return found

    def log(self, name: str) -> str:
        path = self.path / "slurm" / "logs" / f"{name}-{self.ids[name]}.out"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def wait(self, name: str, happened: Callable[[], Any], what: str) -> Any:
        """Wait until something happens; fail if the job ends first."""

        looks = itertools.count()

        def look() -> Any:
            if next(looks) % 10 == 9:  # Slurm answers slowly, and pieces exist for a second
                assert self.job(name).active or happened(), f"{name} ended\n{self.log(name)}"
            return happened()

        return wait_until(look, f"{what} of {name}:\n{self.log(name)}", LONG, PAUSE)

    def wait_for_end(self) -> dict[str, JobState]:
        """Wait until no job is active and return the states of all."""
        found: dict[str, JobState] = {}

        def ended() -> bool:
            found.update({name: self.job(name) for name in self.ids})
            return not any(state.active for state in found.values())

        wait_until(ended, f"the end of {self.path.name}'s jobs", 3 * LONG, PAUSE)
        return found

    def ray(self, cluster: SlurmCluster, node: str, name: str) -> bool:
        """Whether the Ray folder of a job exists on a node."""
        return any(cluster.folder_of(node, "/tmp").glob(f"xlr-{self.ids[name]}-*"))

    def pieces(self, folder: str) -> list[Path]:
        return list(self.path.glob(folder))

    def digests(self) -> dict[str, str]:
        return {name: read_json(self.path / f"{name}.manifest.json")["digest"] for name in MODELS}


@pytest.fixture(scope="module")
def undisturbed(cluster: SlurmCluster, tree: dict[str, Any], shared: Path) -> Run:
    judge = {"backend": "transformers", "model": tree["model"]["initial"]}
    run = Run(shared, "undisturbed", tree | {"judge": judge})
    run.wait(
        PAIR[0],
        lambda: all(run.ray(cluster, NODES[0], name) for name in PAIR),
        "the Ray folder of the other job, beside that",
    )
    states = run.wait_for_end()
    for name, state in states.items():
        assert (state.state, state.restarts) == ("COMPLETED", 0), f"{name}: {state}\n{run.log(name)}"
    return run


def test_two_jobs_on_a_node_have_separate_ray_clusters(undisturbed: Run, cluster: SlurmCluster) -> None:
    """They ran at the same time with different folders and ports, and both finished."""
    logs = [undisturbed.path / "slurm" / "logs" / f"ray-{undisturbed.ids[name]}.out" for name in PAIR]
    ports = [set(re.findall(r"--address='?[0-9.]+:(\d+)", log.read_text())) for log in logs]
    assert all(len(found) == 1 for found in ports), ports
    assert ports[0] != ports[1]
    assert not any(undisturbed.ray(cluster, node, name) for node in NODES for name in PAIR), "folders are left"


def test_a_chain_of_two_iterations_ends_complete(undisturbed: Run) -> None:
    for name in ("annotate-1", "train-1", "annotate-2", "train-2"):
        assert undisturbed.job(name).nodes == "n[1-2]"
    assert read_json(undisturbed.path / "iter2" / "model.manifest.json")["facts"]["world_size"] == 2
    said = undisturbed.command("status").stdout
    assert said.count("done") == 13
    assert 0 < read_json(undisturbed.path / "iter2" / "judgements" / "initial" / "winrates.json")["win_rate"] < 100
    assert said.count("COMPLETED") == len(undisturbed.ids) == 7
    assert not undisturbed.pieces("slurm/secrets/*/token"), "a token is left"
    assert (undisturbed.path / "report.html").is_file(), "the last job writes the report"
    assert "every stage is done" in undisturbed.command("submit").stdout


def test_a_chain_that_is_interrupted_in_every_job_gives_the_same_weights(
    cluster: SlurmCluster, undisturbed: Run, tree: dict[str, Any], shared: Path
) -> None:
    run = Run(shared, "disturbed", tree, "evaluate.prompts=null")
    run.wait("annotate-1", lambda: run.pieces("iter1/responses.parts/**/*.parquet"), "a piece")
    for pid in workers(cluster, NODES[0]) | workers(cluster, NODES[1]):
        os.kill(pid, signal.SIGSTOP)  # so that nothing finishes before the signal
    refused = run.command("submit", run.path, code=2).stderr
    assert run.ids["annotate-1"] in refused
    assert "queued or running" in refused
    minutes = scheduler.seconds(run.job("annotate-1").elapsed) // 60 + 2
    limit(run.ids["annotate-1"], minutes)  # less than two minutes are left
    run.wait("annotate-1", lambda: run.job("annotate-1").restarts == 1, "the restart at the time limit")
    limit(run.ids["annotate-1"], 60)
    assert "ended by SIGUSR1; finished work is kept" in run.log("annotate-1")
    assert "saved; job" in run.log("annotate-1")
    assert run.job("train-1").state == "PENDING"

    run.wait("train-1", lambda: run.pieces("iter1/model.checkpoints/*/*"), "a checkpoint")
    cluster.crash(NODES[1])  # it is back before Slurm notices, so that the job sees only the failure of the other rank
    cluster.boot(NODES[1])
    run.wait("train-1", lambda: run.job("train-1").restarts == 1, "the restart after the crash")
    assert f"lost {NODES[1]}; job" in run.log("train-1")

    run.wait("annotate-2", lambda: run.pieces("iter2/responses.parts/**/*.parquet"), "a piece")
    cluster.crash(NODES[1])
    run.wait("annotate-2", lambda: run.job("annotate-2").restarts == 1, "the restart after the crash")
    cluster.boot(NODES[1])

    run.wait("train-2", lambda: run.pieces("iter2/model.checkpoints/*/*"), "a checkpoint")
    subprocess.run(["scontrol", "requeue", run.ids["train-2"]], check=True)
    states = run.wait_for_end()
    for name, state in states.items():
        assert state.state == "COMPLETED", f"{name}: {state}\n{run.log(name)}"
    assert [states[name].restarts for name in ("annotate-1", "train-1", "annotate-2", "train-2")] == [1, 1, 1, 1]
    assert run.digests() == undisturbed.digests()
    for name in ("iter1/responses", "iter2/responses"):
        assert read_rows(run.path / name, Response) == read_rows(undisturbed.path / name, Response)


def test_a_training_goes_on_with_another_number_of_nodes(
    cluster: SlurmCluster, undisturbed: Run, tree: dict[str, Any], shared: Path
) -> None:
    """Its job asks for one or two nodes. It starts while one is out of service, and restarts when both are free."""
    shutil.copytree(undisturbed.path, shared / "elastic")
    for artefact in ("iter1/model", "iter2/responses", "iter2/scores", "iter2/pairs", "iter2/model"):
        (shared / "elastic" / f"{artefact}.manifest.json").unlink()
        shutil.rmtree(shared / "elastic" / artefact)
    (shared / "elastic" / "iter1" / "metrics.jsonl").unlink()
    update = ["scontrol", "update", f"nodename={NODES[1]}"]
    subprocess.run([*update, "state=drain", "reason=test"], check=True)
    one = ("iterations=1", "evaluate.prompts=null", "slurm.jobs={train: {nodes: 1-2}}")
    run = Run(shared, "elastic", tree, *one)
    assert set(run.ids) == {"train-1"}
    run.wait("train-1", lambda: run.pieces("iter1/model.checkpoints/*/*"), "a checkpoint")
    assert run.job("train-1").nodes == NODES[0]
    subprocess.run([*update, "state=resume"], check=True)
    subprocess.run(["scontrol", "requeue", run.ids["train-1"]], check=True)
    assert run.wait_for_end()["train-1"].state == "COMPLETED", run.log("train-1")
    assert (run.job("train-1").nodes, run.job("train-1").restarts) == ("n[1-2]", 1)
    facts = read_json(run.path / "iter1" / "model.manifest.json")["facts"]
    assert facts["world_size"] == 2
    own, other = (whole_rows(one.path / "iter1" / "metrics.jsonl") for one in (run, undisturbed))
    assert [row["step"] for row in own] == [row["step"] for row in other]
    assert [row["loss"] for row in own] == pytest.approx([row["loss"] for row in other], rel=1e-4)


def test_jobs_after_a_failed_stage_are_cancelled_and_status_says_why(
    cluster: SlurmCluster, tree: dict[str, Any], shared: Path
) -> None:
    prompts = shared / "prompts"
    shutil.copytree(tree["prompts"]["path"], prompts)
    run = Run(shared, "failing", tree | {"prompts": {"path": str(prompts), "limit": 4}}, "evaluate.prompts=null")
    (prompts / "es.jsonl").unlink()
    states = run.wait_for_end()
    assert {name: state.state for name, state in states.items()} == {
        "annotate-1": "FAILED",
        **dict.fromkeys(("train-1", "annotate-2", "train-2"), "CANCELLED"),
    }
    printed = run.command("status").stdout
    assert "NonZeroExitCode: see its log" in printed
    assert "has no es.jsonl or es.json" in printed
    assert printed.count("DependencyNeverSatisfied: a job that it waits for failed") == 3
    assert "has no es.jsonl or es.json" in run.command("logs", run.path, "generate").stdout


def test_a_job_that_used_up_its_restarts_fails(cluster: SlurmCluster, tree: dict[str, Any], shared: Path) -> None:
    merged = "slurm.jobs.annotate.stages=[generate, score, pair, reference, train]"
    run = Run(shared, "restless", tree, "evaluate.prompts=null", "slurm.nodes=1", "slurm.max_restarts=0", merged)
    assert set(run.ids) == {"annotate-1", "annotate-2"}
    run.wait("annotate-1", lambda: run.pieces("iter1/responses.parts/**/*.parquet"), "a piece")
    subprocess.run(["scancel", "--signal=USR1", run.ids["annotate-1"]], check=True)
    assert run.wait_for_end()["annotate-1"].state == "FAILED"
    assert "restarted 0 times, which is slurm.max_restarts" in run.command("status").stdout


def test_a_cancelled_run_leaves_nothing_on_the_nodes(cluster: SlurmCluster, tree: dict[str, Any], shared: Path) -> None:
    run = Run(shared, "cancelled", tree, "evaluate.prompts=null")
    run.wait("annotate-1", lambda: all(workers(cluster, node) for node in NODES), "workers on both nodes")
    run.command("cancel")
    wait_until(lambda: not any(cluster.processes(node) for node in NODES), "the end of all processes", 30, PAUSE)
    assert not any(run.ray(cluster, node, "annotate-1") for node in NODES)
    assert {state.state for state in run.wait_for_end().values()} == {"CANCELLED"}
    assert not run.pieces("slurm/secrets/*/token"), "a token is left"


def test_jobs_that_slurm_would_refuse_are_reported_before_anything_is_queued(
    cluster: SlurmCluster, tree: dict[str, Any], shared: Path
) -> None:
    config = shared / "refused.yaml"
    config.write_text(yaml.safe_dump(tree | {"run_dir": str(shared / "refused")}), encoding="utf-8")
    for override, message in {
        "slurm.partition=nowhere": "slurm.jobs.annotate: .*partitions here: main",
        "slurm.jobs.train.nodes=3": "slurm.jobs.train: ",
    }.items():
        command = [sys.executable, "-m", "xlr", "submit", str(config), override]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 2, result.stderr
        assert re.search(message, result.stderr, re.DOTALL), result.stderr
        assert not (shared / "refused" / "slurm" / "jobs.json").exists()


def test_the_doctor_reports_passed_and_failed_checks(cluster: SlurmCluster, tree: dict[str, Any], shared: Path) -> None:
    config = shared / "doctor.yaml"
    judge = {"model": "judge", "base_url": "http://127.0.0.1:9/v1"}  # no server listens there
    tree = tree | {"run_dir": str(shared / "doctor"), "judge": judge}
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = [sys.executable, "-m", "xlr", "doctor", str(config)]
    environment = os.environ | {"OPENAI_API_KEY": "none"}
    first = subprocess.run([*command, "--deep"], env=environment, capture_output=True, text=True, timeout=2 * LONG)
    assert first.returncode == 2, first.stdout + first.stderr
    assert first.stdout.count("FAILED") == len(NODES), first.stdout
    for node in NODES:
        assert re.search(rf"ok +{node}: Python: .*torch .*; no GPU", first.stdout)
        assert f"{node}: run_dir: sees 3 of 3 files" in first.stdout
        assert f"FAILED  {node}: judge: judge judge at http://127.0.0.1:9/v1: cannot be reached" in first.stdout
        assert f"{node}: collectives: 2 tasks met over gloo" in first.stdout
    assert "Ray: n1 n2 joined at 10." in first.stdout
    assert "ok      self-test: numerics: scorer, trainer, exported model and a plain forward pass agree" in first.stdout
    assert "ok      self-test: scoring again: the same bits" in first.stdout
    second = subprocess.run([*command, "slurm.python=/nowhere/python"], capture_output=True, text=True, timeout=LONG)
    assert second.returncode == 2, second.stdout
    assert "'/nowhere/python -m xlr' does not start; set slurm.setup, slurm.python or slurm.container" in second.stdout


def test_a_sweep_annotates_once_and_trains_each_variant(
    cluster: SlurmCluster, tree: dict[str, Any], shared: Path
) -> None:
    """Three variants on two nodes: one job annotates for all, and each trains on what it made."""
    base = {name: value for name, value in tree.items() if name != "run_dir"}
    base |= {"iterations": 1, "evaluate": {}, "slurm": tree["slurm"] | {"options": ["--hold"]}}
    (shared / "sweep-base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    sweep = {"base": "sweep-base.yaml", "sweep_dir": str(shared / "sweep"), "at_once": 2}
    variants = {"variants": {"loss": {"train.beta": 0.5}, "rate": {"train.learning_rate": 5e-4}}}
    (shared / "sweep.yaml").write_text(yaml.safe_dump(sweep | variants), encoding="utf-8")
    command = [sys.executable, "-m", "xlr", "sweep"]
    sent = subprocess.run(
        [*command, "submit", str(shared / "sweep.yaml")], capture_output=True, text=True, timeout=LONG
    )
    assert sent.returncode == 0, sent.stdout + sent.stderr
    ids = dict(reversed(line.split("  ")) for line in sent.stdout.splitlines() if re.match(r"[0-9]+  ", line))
    assert set(ids) == {"base/annotate-1", "base/train-1", "loss/train-1", "rate/train-1"}
    refused = subprocess.run(
        [*command, "submit", str(shared / "sweep.yaml")], capture_output=True, text=True, timeout=LONG
    )
    assert refused.returncode == 2
    assert "its jobs are queued or running" in refused.stderr
    subprocess.run(["scontrol", "release", *ids.values()], check=True)

    def ended() -> bool:
        found = [scheduler.job(number) for number in ids.values()]
        return not any(state and state.active for state in found)

    wait_until(ended, "the end of the sweep's jobs", 3 * LONG, PAUSE)
    for name, number in ids.items():
        run, job = name.split("/")
        log = shared / "sweep" / run / "slurm" / "logs" / f"{job}-{number}.out"
        state = scheduler.job(number)
        assert state
        assert state.state == "COMPLETED", f"{name}: {state}\n{log.read_text()}"
    runs = [shared / "sweep" / name for name in ("base", "loss", "rate")]
    pairs = [read_json(run / "iter1" / "pairs.manifest.json") for run in runs]
    assert pairs[0] == pairs[1] == pairs[2], "annotated more than once"
    assert len({read_json(run / "iter1" / "model.manifest.json")["digest"] for run in runs}) == 3
    status = subprocess.run(
        [*command, "status", str(shared / "sweep")], capture_output=True, text=True, timeout=120, check=True
    )
    assert status.stdout.count("4 of 4 done") == 3, status.stdout


def test_an_array_has_a_task_for_each_variant(cluster: SlurmCluster, tree: dict[str, Any], shared: Path) -> None:
    """Each task of the second array waits for its own task of the first; both for the job that annotates."""
    base = {name: value for name, value in tree.items() if name != "run_dir"}
    base |= {"iterations": 1}
    (shared / "array-base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    sweep = {"base": "array-base.yaml", "sweep_dir": str(shared / "array"), "at_once": 1, "array": True}
    variants = {"variants": {"loss": {"train.beta": 0.5}}}
    (shared / "array.yaml").write_text(yaml.safe_dump(sweep | variants), encoding="utf-8")
    command = [sys.executable, "-m", "xlr", "sweep"]
    sent = subprocess.run(
        [*command, "submit", str(shared / "array.yaml")], capture_output=True, text=True, timeout=LONG
    )
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "one array: train-1 of base, loss" in sent.stdout
    assert "one array: evaluate-1 of base, loss" in sent.stdout
    ids = dict(reversed(line.split("  ")) for line in sent.stdout.splitlines() if re.match(r"[0-9_]+  ", line))
    first, second = (ids[f"{name}/train-1"].split("_") for name in ("base", "loss"))
    assert (first[0], first[1], second[1]) == (second[0], "0", "1")

    def ended() -> bool:
        found = [scheduler.job(number) for number in ids.values()]
        return not any(state and state.active for state in found)

    wait_until(ended, "the end of the sweep's jobs", 3 * LONG, PAUSE)
    for name, number in ids.items():
        state, job = scheduler.job(number), name.split("/")[1]
        assert state
        logs = [*(shared / "array").glob(f"**/logs/{job}-{number}.out")]
        assert state.state == "COMPLETED", f"{name}: {state}\n{[log.read_text() for log in logs]}"
    trained = [read_json(shared / "array" / name / "iter1" / "model.manifest.json") for name in ("base", "loss")]
    assert trained[0]["digest"] != trained[1]["digest"]
    status = subprocess.run(
        [*command, "status", str(shared / "array")], capture_output=True, text=True, timeout=120, check=True
    )
    assert status.stdout.count("6 of 6 done") == 2, status.stdout


def limit(job: str, minutes: int) -> None:
    """Change the time limit of a job, in minutes."""
    subprocess.run(["scontrol", "update", f"jobid={job}", f"timelimit={minutes}"], check=True)


def workers(cluster: SlurmCluster, node: str) -> set[int]:
    """The Ray workers that run on a node."""
    return {pid for pid, command in cluster.processes(node).items() if command.startswith("ray::RemoteWorker")}

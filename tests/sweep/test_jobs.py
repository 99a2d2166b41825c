"""The jobs of a sweep: each stage once, after what it reads, and no more at a time than allowed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Cli
from tests.sweep.conftest import Write
from xlr.jobs import graph
from xlr.jobs.graph import DEFAULTS
from xlr.settings.slurmconfig import SlurmConfig
from xlr.shipped import shipped
from xlr.sweep import jobs
from xlr.sweep.arrays import groups
from xlr.sweep.jobs import Node, _Lanes
from xlr.sweep.variants import open_sweep

WITH_JUDGE = graph.layered(DEFAULTS, SlurmConfig.model_validate({"jobs": {"judge": {"stages": ["judge"]}}}))


def nodes_of(path: Path, at_once: int | None = None) -> list[Node]:
    return jobs.plan(jobs.divide(open_sweep(path), None), None, at_once)


def test_shared_stages_stand_once_and_their_readers_wait_for_them(write_sweep: Write) -> None:
    found = {
        node.key: node
        for node in nodes_of(
            write_sweep(variants={"loss": {"train.beta": 0.2}, "reward": {"score.reward": "multilingual"}})
        )
    }
    stages = {key: [str(stage) for stage in node.job.stages] for key, node in found.items()}
    assert stages == {
        ("base", "annotate-1"): ["generate 1", "score 1", "pair 1"],
        ("base", "train-1"): ["train 1"],
        ("base", "evaluate-0"): ["evaluate 0"],
        ("base", "evaluate-1"): ["evaluate 1"],
        ("loss", "train-1"): ["train 1"],
        ("loss", "evaluate-1"): ["evaluate 1"],
        ("reward", "annotate-1"): ["score 1", "pair 1"],
        ("reward", "train-1"): ["train 1"],
        ("reward", "evaluate-1"): ["evaluate 1"],
    }
    assert found["loss", "train-1"].after == (("base", "annotate-1"),)
    assert found["reward", "annotate-1"].after == (("base", "annotate-1"),)
    assert found["reward", "train-1"].after == (("reward", "annotate-1"),)
    assert set(found["loss", "evaluate-1"].after) == {("loss", "train-1"), ("base", "evaluate-0")}
    assert not any(node.after_end_of for node in found.values())


def test_like_jobs_of_several_variants_are_one_array(write_sweep: Write) -> None:
    """A task waits for its own variant's task of another array, and for a job that several variants share."""
    path = write_sweep(
        variants={
            "loss": {"train.beta": 0.2},
            "reward": {"score.reward": "multilingual"},
            "nodes": {"train.beta": 0.3, "slurm.jobs": {"train": {"nodes": 2}}},
        }
    )
    nodes = nodes_of(path)
    found = groups(nodes, arrays=True)
    names = [(group.name, tuple(node.key[0] for node in group.nodes)) for group in found]
    assert ("annotate-1", ("base",)) in names
    assert ("annotate-1", ("reward",)) in names  # it waits for that of the base, so it is no task beside it
    assert ("train-1", ("base", "loss")) in names
    assert ("train-1", ("nodes",)) in names  # it asks for more
    of_name = dict(zip(names, found, strict=True))
    assert of_name["train-1", ("base", "loss")].one == (("base", "annotate-1"),)
    assert of_name["train-1", ("base", "loss")].same == ()
    evaluated = of_name["evaluate-1", ("base", "loss")]
    assert evaluated.same == (names.index(("train-1", ("base", "loss"))),)
    assert evaluated.one == (("base", "evaluate-0"),)
    assert sorted(node.key for group in found for node in group.nodes) == sorted(node.key for node in nodes)
    single = groups(nodes, arrays=False)
    assert [group.nodes for group in single] == [(node,) for node in nodes]
    assert all(group.one == group.nodes[0].after and not group.same for group in single)


@given(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=6), st.randoms())
def test_every_group_comes_after_what_it_waits_for(shape: list[list[int]], random: Any) -> None:
    """On any graph, grouped or not, each job waits for the same jobs as without groups."""
    nodes: list[Any] = []
    for variant, jobs_of_variant in enumerate(shape):
        for kind in dict.fromkeys(jobs_of_variant):
            job = graph.Job(("annotate", "train", "evaluate", "judge")[kind], 1, (), ())
            before = [node.key for node in nodes if random.random() < 0.3]
            key = (f"v{variant}", job.name)
            nodes.append(SimpleNamespace(key=key, job=job, slurm=WITH_JUDGE, after=tuple(before[-2:])))
    found = groups(nodes, arrays=True)
    place = {node.key: index for index, group in enumerate(found) for node in group.nodes}
    assert place.keys() == {node.key for node in nodes}
    for index, group in enumerate(found):
        for node in group.nodes:
            same = {key for other in group.same for own in found[other].nodes if (key := own.key)[0] == node.key[0]}
            assert {*group.one, *same} == set(node.after)
            assert all(place[key] < index for key in node.after)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_no_more_jobs_run_at_a_time_than_allowed(at_once: int, write_sweep: Write) -> None:
    """Two jobs can run at the same time only if neither waits for the other, directly or through others."""
    nodes = nodes_of(write_sweep(grid={"train.beta": [0.1, 0.2, 0.3], "pair.rejected": ["worst", "median"]}), at_once)
    before: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for node in nodes:
        waits = {*node.after, *([node.after_end_of] if node.after_end_of else [])}
        assert waits <= set(before), "a job waits for one that is submitted later"
        before[node.key] = waits.union(*(before[key] for key in waits))
    lanes: list[tuple[str, str]] = []
    for node in nodes:  # the jobs that wait for no end begin a lane; the others continue one
        if node.after_end_of is None:
            lanes.append(node.key)
    assert len(lanes) == at_once
    ends = [node.after_end_of for node in nodes if node.after_end_of]
    assert len(set(ends)) == len(ends), "two jobs follow the same one"


@given(st.integers(1, 6), st.lists(st.floats(1, 100), min_size=1, max_size=30), st.randoms())
def test_lanes_never_hold_two_jobs_at_a_time(count: int, durations: list[float], random: object) -> None:
    lanes = _Lanes([0.0] * count, [None] * count)
    begins: dict[tuple[str, str], float] = {}
    for number, seconds in enumerate(durations):
        key = ("run", str(number))
        after = [("run", str(random.randrange(number)))] if number and random.random() < 0.5 else []  # type: ignore[attr-defined]
        before = lanes.place(key, after, seconds)
        begins[key] = lanes.finished[key] - seconds
        for other in (*after, *([before] if before else [])):
            assert begins[key] >= lanes.finished[other] - 1e-6
    for key, begin in begins.items():
        running = [other for other in begins if begins[other] <= begin + 1e-6 < lanes.finished[other] - 1e-6]
        assert len(running) <= count, key


def test_the_command_waits_for_success_and_for_the_end() -> None:
    node = graph.Job("train", 1, (), ())
    command = graph.command(node, DEFAULTS, Path("/runs/one"), ["1", "2"], ["3"])
    assert "--dependency=afterok:1:2,afterany:3" in command
    assert "--dependency=afterany:3" in graph.command(node, DEFAULTS, Path("/runs/one"), [], ["3"])
    assert not any("dependency" in option for option in graph.command(node, DEFAULTS, Path("/runs/one"), []))


def test_the_command_of_an_array() -> None:
    job = graph.Job("train", 1, (), ())
    waits = {"afterok": ["7"], "aftercorr": ["9"]}
    folder = Path("/runs/sweep")
    command = graph.array_command(
        {0: job, 3: job}, DEFAULTS, "sweep-train-1", folder / "slurm" / "arrays" / "train-1-0", folder, waits, 2
    )
    assert "--array=0,3%2" in command
    assert "--dependency=afterok:7,aftercorr:9" in command
    assert "--output=/runs/sweep/train-1-%A_%a.out" in command
    assert command[-2:] == ["/runs/sweep/slurm/array.sbatch", "/runs/sweep/slurm/arrays/train-1-0"]


def test_the_array_ends_as_early_as_its_scripts() -> None:
    for name in ("annotate", "evaluate"):
        assert f"#SBATCH --signal=USR1@{graph.ENDING_SECONDS}\n" in shipped("slurm", f"{name}.sbatch").read_text()


def test_a_dry_run_shows_the_graph_and_writes_nothing(write_sweep: Write, cli_here: Cli, tmp_path: Path) -> None:
    path = write_sweep(variants={"loss": {"train.beta": 0.2}})
    shown = cli_here("sweep", "submit", path, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "loss/train-1" in shown.stdout
    assert "8 stages to make; run by run it would be 12. Planned: " in shown.stdout
    assert not (tmp_path / "runs").exists()


def test_only_runs_that_share_look_for_work_before_they_train() -> None:
    assert "reuses=\n" in graph.environment(DEFAULTS, "python")
    assert "reuses=yes\n" in graph.environment(DEFAULTS, "python", reuses=True)

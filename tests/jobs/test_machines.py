"""What the stages of a run compute on, for plans."""

from typing import Any

import pytest

from xlr.errors import UserError
from xlr.jobs import graph, machines
from xlr.pipeline import Stage
from xlr.planning import hardware
from xlr.settings.config import Config
from xlr.settings.slurmconfig import SlurmConfig

TREE: dict[str, Any] = {
    "run_dir": "/run",
    "languages": ["es"],
    "model": {"initial": "/initial", "aligned": "/aligned"},
    "prompts": {"path": "/prompts"},
    "train": {"processes": 2},
    "ray": {"actors": 3},
}
TRAIN, SCORE = Stage("train", 1), Stage("score", 1)


def of_jobs(own: dict[str, Any]) -> Any:
    slurm = graph.layered(graph.DEFAULTS, SlurmConfig.model_validate(own))
    return machines.of_jobs(Config.model_validate(TREE), slurm)


def test_each_stage_has_what_its_job_asks_for() -> None:
    found = of_jobs({"gpus": 8, "jobs": {"annotate": {"nodes": 2}, "train": {"gpus": "a100:4"}}, "hardware": "a100-40"})
    assert (found(SCORE).nodes, found(SCORE).per_node, found(SCORE).hardware.name) == (2, 8, "a100-40")
    assert (found(TRAIN).nodes, found(TRAIN).per_node) == (1, 4)


def test_without_gpus_the_processes_share_this_machine() -> None:
    found = of_jobs({})
    assert not found(TRAIN).hardware.gpu
    assert (found(TRAIN).count, found(SCORE).count) == (2, 3)


def test_the_gpus_of_this_machine_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "this_machine", lambda: hardware.PROFILES["h100"])
    monkeypatch.setattr(hardware, "gpus_here", lambda: 1)
    config = Config.model_validate(TREE)
    assert of_jobs({})(SCORE).count == machines.named(config, "here")(SCORE).count == 1
    assert machines.named(config, "here:4")(SCORE).count == 4
    assert machines.named(config, "h100")(SCORE).count == 8
    assert machines.named(config, "h100:4:3")(SCORE).count == 12


def test_a_stage_without_a_kind_of_job_is_named() -> None:
    """A site that lists the stages of its jobs may lack a new one."""
    with pytest.raises(UserError, match=r"slurm\.jobs: no kind of job has pair; add it"):
        of_jobs({"gpus": 1, "jobs": {"annotate": {"stages": ["generate", "score", "reference"]}}})

"""`evaluate.every`: which models are evaluated and judged."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlr import pipeline
from xlr.errors import UserError
from xlr.jobs import graph, submission
from xlr.run.context import Context
from xlr.settings.config import Config
from xlr.settings.slurmconfig import SlurmConfig


def config(tree: dict[str, Any], **evaluate: Any) -> Config:
    return Config.model_validate(tree | {"evaluate": tree["evaluate"] | evaluate})


@given(iterations=st.integers(1, 12), every=st.integers(1, 14))
def test_the_first_and_the_last_and_every_nth_are_evaluated(iterations: int, every: int) -> None:
    models = {"initial": "pi_i", "aligned": "pi_0"}
    tree = {"run_dir": "run", "languages": ["en"], "model": models, "prompts": {"path": "x"}, "evaluate": {}}
    own = config(tree | {"iterations": iterations}, every=every, models={"other": "folder"})
    assert own.evaluated_models == [*sorted({0, *range(0, iterations, every), iterations}), "other"]
    assert own.models == [*range(iterations + 1), "other"]


def test_only_they_have_stages_and_jobs(tiny_tree: dict[str, Any]) -> None:
    tree = tiny_tree | {"iterations": 3, "judge": {"model": "judge"}}
    own = config(tree, every=2)
    names = [str(stage) for stage in pipeline.stages(own)]
    assert [name for name in names if name.startswith("evaluate")] == ["evaluate 0", "evaluate 2", "evaluate 3"]
    assert [name for name in names if name.startswith("judge")] == ["judge 2", "judge 3"]
    assert {f"train {number}" for number in (1, 2, 3)} <= set(names)
    jobs = {job.name for job in submission.plan(Context(own), graph.layered(graph.DEFAULTS, SlurmConfig()))}
    assert {"evaluate-2", "train-1"} <= jobs
    assert "evaluate-1" not in jobs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop_early": True}, r"evaluate\.every: stop_early decides after each iteration"),
        (
            {"judge": {"model": "j", "baseline": 1}},
            r"judge\.baseline: iteration 1 has no answers with evaluate\.every=2",
        ),
    ],
)
def test_what_needs_every_evaluation_is_refused(
    settings: dict[str, Any], message: str, tiny_tree: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=message):
        config(tiny_tree | {"iterations": 3} | settings, every=2)

"""`stop_early`: a run ends when what was measured speaks against another iteration, here and on Slurm's graph."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Cli
from xlr import configfile, pipeline
from xlr.errors import UserError
from xlr.findings import earlystop
from xlr.jobs import graph, submission
from xlr.pipeline import Stage
from xlr.run import stopped
from xlr.run.context import Context
from xlr.settings.config import MOST_AUTOMATIC, Config
from xlr.settings.slurmconfig import SlurmConfig

Write = Callable[[dict[str, Any]], Path]


@pytest.fixture
def tree(tiny_tree: dict[str, Any]) -> dict[str, Any]:
    return tiny_tree | {"iterations": 3, "stop_early": True}


def context_of(tree: dict[str, Any]) -> Context:
    return Context(Config.model_validate(tree))


def test_auto_is_at_most_ten_iterations(tree: dict[str, Any], tmp_path: Path) -> None:
    config = Config.model_validate(tree | {"iterations": "auto"})
    assert (config.iterations, config.stop_early) == (MOST_AUTOMATIC, True)
    path = tmp_path / "auto.yaml"
    path.write_text(yaml.safe_dump(tree | {"iterations": 2, "stop_early": False}), encoding="utf-8")
    assert configfile.load(path).iterations == 2
    found = configfile.load(path, ["iterations=auto"])
    assert (found.iterations, found.stop_early) == (MOST_AUTOMATIC, True)


def test_each_iteration_is_judged_before_the_next(tree: dict[str, Any]) -> None:
    own = Config.model_validate(tree | {"judge": {"model": "judge"}})
    order = [str(stage) for stage in pipeline.stages(own)]
    assert order.index("judge 1") < order.index("generate 2") < order.index("judge 2") < order.index("generate 3")
    usual = [str(stage) for stage in pipeline.stages(own.model_copy(update={"stop_early": False}))]
    assert usual.index("judge 1") > usual.index("evaluate 3")


def test_a_job_of_the_next_iteration_waits_for_the_evaluation(tree: dict[str, Any]) -> None:
    for stop_early, waits in ((True, True), (False, False)):
        context = context_of(tree | {"stop_early": stop_early})
        slurm = graph.layered(graph.DEFAULTS, SlurmConfig())
        found = {job.name: job.after for job in submission.plan(context, slurm)}
        assert ("evaluate-1" in found["annotate-2"]) is waits
        assert "train-1" in found["annotate-2"]
        assert "evaluate-0" not in found["annotate-1"]
        assert ("evaluate-0" in found["annotate-2"]) is waits  # what is measured of pi^0 is compared with
        assert "evaluate-0" not in found["annotate-3"]


def test_what_a_stage_reads_does_not_change(tree: dict[str, Any]) -> None:
    """`xlr redo` names the stages that read what another makes; a decision is not read."""
    assert Stage("evaluate", 1) not in pipeline.needs(context_of(tree))[Stage("generate", 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate": {}}, "stop_early: nothing is measured that it could go by"),
        ({"judge": {"model": "j", "baseline": 2}}, r"judge\.baseline: with stop_early each iteration is judged before"),
    ],
)
def test_what_it_needs_is_checked(changes: dict[str, Any], message: str, tree: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=message):
        Config.model_validate(tree | changes)


def test_the_decision_is_read_by_later_processes_while_its_evidence_stands(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(tree)
    context.run.create()
    stopped.write(context.run.path, 2, ["It is not likely to be worth it."], [])
    assert context_of(tree).config.iterations == 2
    assert context_of(tree).given.iterations == 3
    assert context_of(tree | {"stop_early": False}).config.iterations == 3
    assert context_of(tree | {"iterations": 1}).config.iterations == 1
    stopped.write(context.run.path, 2, [], [context.run.iteration(1) / "eval"])  # there is no such artefact
    assert stopped.read(context.run.path) is not None
    monkeypatch.setattr(stopped, "_digest", lambda folder: "of other figures")
    assert stopped.read(context.run.path) is None
    assert context_of(tree).config.iterations == 3
    stopped.write(context.run.path, 2, [], [])
    with monkeypatch.context() as patch:  # iteration 3 was made with stop_early=false
        patch.setattr(stopped, "read_manifest", lambda folder: folder == context.run.iteration(3) / "model" or None)
        assert context_of(tree).config.iterations == 3
        assert not earlystop.ends(context_of(tree), 2)
    (context.run.path / "stopped.json").write_text(
        '{"iteration": 1, "why": [], "evidence": {}, "seal": "x"}', encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"stopped\.json"):
        context_of(tree)


def advising(verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the rule say so of every iteration. What it says of real figures is tested in test_stopping."""
    collect = earlystop.collect

    def collected(*arguments: Any) -> Any:
        found = collect(*arguments)
        assert found["advice"] is not None
        return found | {"advice": found["advice"] | {"verdict": verdict}}

    monkeypatch.setattr(earlystop, "collect", collected)


def test_a_run_ends_and_stays_ended(
    tree: dict[str, Any], write_config: Write, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    del tree["evaluate"]["prompts"]
    path = write_config(tree | {"iterations": 1})
    first = cli("run", path)
    assert first.returncode == 0, first.stderr
    run = Path(tree["run_dir"])

    # The second process finds iteration 1 done, decides, and makes nothing more.
    for verdict, ended in (("yes", False), ("not clear", False), ("no", True)):
        with monkeypatch.context() as patch:
            advising(verdict, patch)
            context = context_of(tree)
            assert earlystop.ends(context, 1) is ended
            assert not earlystop.ends(context, 0)
            assert (run / "stopped.json").is_file() is ended
    again = cli("run", path, "iterations=3")
    assert again.returncode == 0, again.stderr
    assert "stop_early: the run ends with iteration 1; stop_early=false iterations=N goes on" in again.stdout
    assert not (run / "iter2").exists()
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["iterations"] == 3
    assert {state["state"] for state in pipeline.status(context_of(tree))} == {"done"}
    left_out = cli("run", run, "--stages", "generate,score,pair", "--iteration", "2")
    assert left_out.returncode == 0, left_out.stderr
    assert "iteration 2: left out, because stop_early ended the run after iteration 1" in left_out.stdout
    redo = cli("redo", run, "evaluate", "--iteration", "1", "--yes")
    assert redo.returncode == 0, redo.stderr
    assert stopped.read(run) is None
    assert "waiting" in {state["state"] for state in pipeline.status(context_of(tree))}


def test_a_run_in_progress_leaves_the_later_iterations_out(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(pipeline, "execute", lambda _, stage: made.append(str(stage)))
    context = context_of(tree)
    pipeline.run_all(context, pipeline.stages(context.config), lambda _, iteration: iteration == 1)
    assert made == ["evaluate 0", "generate 1", "score 1", "pair 1", "train 1", "evaluate 1"]
    assert context.config.iterations == 1

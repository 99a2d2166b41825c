"""How many actors fit a cluster, and what decides the numbers they compute."""

import importlib.metadata
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

from xlr.cluster.raypool import Pool
from xlr.cluster.sizing import plan_actors, room, with_tensor_parallelism
from xlr.errors import UserError
from xlr.records import SampleSettings, SampleTask, ScoreTask, Task
from xlr.run.identity import ACCEPTABLE, changes
from xlr.settings.config import RayConfig
from xlr.settings.generateconfig import GenerateConfig
from xlr.settings.modelconfig import ModelConfig
from xlr.versions import FUSED, LIBRARIES, VLLM, versions

SAMPLE, SCORE = SampleTask("m", (), SampleSettings(1.0, 1.0, 0, 1, (0,))), ScoreTask(("m",), (), "auto")


@pytest.mark.parametrize(
    ("nodes", "settings", "expected"),
    [
        ([(2, 0)], {}, (2, 0.0, 1)),
        ([(2, 0)], {"actors": 2}, (1, 0.0, 2)),
        ([(16, 0), (16, 0)], {}, (16, 0.0, 2)),
        ([(16, 0)], {"cpus_per_actor": 4}, (4, 0.0, 4)),
        ([(96, 8), (96, 8)], {}, (4, 1.0, 16)),
        ([(16, 8)], {}, (2, 1.0, 8)),
        ([(96, 8)], {"gpus_per_actor": 2}, (4, 2.0, 4)),
        ([(96, 8)], {"gpus_per_actor": 0.3}, (4, 0.3, 24)),
        ([(8, 0), (96, 4)], {}, (4, 1.0, 4)),
    ],
)
def test_actors_use_all_cpus_and_gpus(
    nodes: list[tuple[int, int]], settings: dict[str, float], expected: tuple[int, float, int]
) -> None:
    cpus_each, gpus_each, count = expected
    chosen = RayConfig.model_validate(settings)
    assert plan_actors(nodes, chosen) == (cpus_each, gpus_each)
    assert (chosen.actors or room(nodes, cpus_each, gpus_each)) == count


@pytest.mark.parametrize(
    ("nodes", "settings"),
    [
        ([(2, 0)], {"actors": 3}),
        ([(64, 4)], {"actors": 5}),
        ([(4, 4)], {"cpus_per_actor": 8}),
        ([(8, 0)], {"gpus_per_actor": 1}),
    ],
)
def test_actors_that_do_not_fit_are_refused(nodes: list[tuple[int, int]], settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"ray\.actors: \d+ actors of .* do not fit"):
        plan_actors(nodes, RayConfig.model_validate(settings))


def test_tensor_parallelism_decides_the_gpus_per_actor() -> None:
    half = RayConfig(gpus_per_actor=0.5)
    nodes = [(96, 8), (8, 0)]
    assert plan_actors(nodes, with_tensor_parallelism(nodes, half, 4)) == (4, 4.0)
    assert with_tensor_parallelism([(8, 0)], half, 4) == half
    with pytest.raises(UserError, match="no node has 16 GPUs"):
        with_tensor_parallelism(nodes, half, 16)


def test_pieces_of_a_kind_of_task_depend_on_what_computes_it() -> None:
    def conditions(task: Task, generate: GenerateConfig, **model: str) -> dict[str, str | None]:
        pool = Pool(RayConfig(), ModelConfig.model_validate({"initial": "i", **model}), generate)
        pool._vllm = False  # as if Ray ran, on nodes without GPUs
        return pool.conditions(task)

    transformers, vllm = GenerateConfig(), GenerateConfig(backend="vllm")
    sampled, scored = conditions(SAMPLE, transformers), conditions(SCORE, transformers)
    assert sampled["model.attn_implementation"] == "sdpa"
    assert scored["model.attn_implementation"] == "xlr_shared_prompt"
    assert conditions(SAMPLE, transformers, attn_implementation="sdpa") == sampled
    assert conditions(SAMPLE, transformers, attn_implementation="eager") != sampled
    assert conditions(SCORE, transformers, attn_implementation="sdpa") != scored
    assert conditions(SAMPLE, transformers, dtype="bfloat16")["precision"] == "bfloat16"
    assert conditions(SCORE, transformers, dtype="bfloat16") == scored  # a task says in which precision it is scored
    assert conditions(ScoreTask(("m",), (), "bfloat16"), transformers)["precision"] == "bfloat16"
    assert "version of vllm" in conditions(SAMPLE, vllm)
    assert "version of vllm" not in scored
    assert "version of deepspeed" not in scored
    assert "version of lingua-language-detector" in scored


def test_pieces_depend_on_whether_operations_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"liger-kernel": "0.8.5"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed.get(name, "1"))

    def conditions(setting: str, gpus: str, task: Task = SCORE, backend: str = "transformers") -> Any:
        model, generate = {"initial": "i", "fused_operations": setting}, {"backend": backend}
        pool = Pool(RayConfig(), ModelConfig.model_validate(model), GenerateConfig.model_validate(generate))
        pool._vllm, pool._gpus = False, gpus  # as if Ray ran
        return pool.conditions(task)

    fused = conditions("auto", "cuda H100")
    assert fused["model.fused_operations"] == "true"
    assert fused["version of liger-kernel"] == "0.8.5"
    assert conditions("auto", "cuda H100", SAMPLE)["version of liger-kernel"] == "0.8.5"
    assert "model.fused_operations" not in conditions("auto", "cuda H100", SAMPLE, "vllm")
    assert conditions("auto", "")["model.fused_operations"] == "false"
    installed["liger-kernel"] = "0.7.0"  # auto does not use it, so pieces do not depend on it
    changed = changes(fused, conditions("auto", "cuda H100"))
    assert {str(change) for change in changed} >= {"model.fused_operations was 'true' and is now 'false'"}
    assert not {change.kind for change in changed} <= {*ACCEPTABLE}, "refused, whatever the user accepts"


def test_a_worker_on_a_node_without_liger_is_refused() -> None:
    pool = Pool(RayConfig(), ModelConfig(initial="i"), GenerateConfig())
    ours = versions((*LIBRARIES, *VLLM, *FUSED)) | {"version of liger-kernel": "0.1"}
    pool._starting = {"started": "actor"}
    ray: Any = SimpleNamespace(get=lambda _: ("n1", ours), exceptions=SimpleNamespace(RayActorError=OSError))
    with pytest.raises(UserError, match=r"n1: version of liger-kernel is 0\.1 there and .* here; use one environment"):
        pool._note_start(ray, "started")


def test_a_dashboard_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ray\.dashboard: not installed; run `pip install \"ray\[default\]\"`"):
        Pool(RayConfig(dashboard=True), ModelConfig(initial="i"), GenerateConfig()).start()

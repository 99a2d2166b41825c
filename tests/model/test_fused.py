"""Fused operations: the same numbers and gradients as a model's own operations, and only where they are wanted.

Without a GPU, Triton's interpreter computes the kernels.
"""

import gc
import importlib.metadata
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config

from tests import tiny
from tests.kernels import DEVICE, require_kernels
from xlr.errors import UserError
from xlr.model import fused
from xlr.model.logprobmodel import LogprobModel, batch_logps, require_sound_logps
from xlr.model.worker import Worker
from xlr.packing.batch import batch
from xlr.records import Example, SampleRequest, SampleSettings
from xlr.settings.modelconfig import SHARED_PROMPT
from xlr.zero.engine import recomputation

EXAMPLES = [Example((5, 6, 7), ((1, 2, 3, 4, 5), (9, 8))), Example((4,), ((3, 3, 2), (1, 5, 6, 7)))]
ATTENTION = [SHARED_PROMPT, "sdpa"]
RECOMPUTATION: list[Any] = [False, True, "selective"]

Lm = Any  # a model of transformers


@pytest.fixture
def kernels() -> None:
    require_kernels()


def make(architecture: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Lm:
    """A tiny model with random weights, also of its norms."""
    config = AutoConfig.for_model(
        architecture,
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.1,
        **({"sliding_window": None} if architecture == "mistral" else {}),
        **settings,
    )
    torch.manual_seed(1)
    causal_lm: Lm = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in causal_lm.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return causal_lm.to(DEVICE, dtype).eval()


def fuse(causal_lm: Lm) -> Lm:
    fused.fuse(causal_lm, True, DEVICE.type == "cuda")
    return causal_lm


def backward(causal_lm: Lm, attention: str, recompute: Any = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities of the examples, and the gradients of a loss with a different weight for each."""
    causal_lm.set_attn_implementation(attention)
    if recompute:
        causal_lm.gradient_checkpointing_enable(recomputation(recompute))
    causal_lm.train()
    logps_S = LogprobModel(causal_lm)(batch(EXAMPLES, attention).to(DEVICE))
    (logps_S * torch.tensor([1.0, -2.0, 0.5, 1.5], device=DEVICE)).sum().backward()
    return logps_S.detach(), {name: p.grad.clone() for name, p in causal_lm.named_parameters() if p.grad is not None}


def error(found: Tensor, expected: Tensor) -> float:
    """Relative to the norm of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("architecture", fused.ARCHITECTURES)
def test_fused_operations_give_the_same_log_probabilities_and_gradients(
    architecture: str, attention: str, kernels: None
) -> None:
    own_S, own = backward(make(architecture), attention)
    found_S, found = backward(fuse(make(architecture)), attention)
    assert error(found_S, own_S) < 1e-5
    assert found.keys() == own.keys()
    assert max(error(found[name], own[name]) for name in own) < 1e-5


@pytest.mark.parametrize("architecture", fused.ARCHITECTURES)
def test_in_bfloat16_they_differ_by_rounding_only(architecture: str, kernels: None) -> None:
    """As far from float32 as the model's own operations in bfloat16."""
    exact_S, exact = backward(make(architecture), SHARED_PROMPT)
    own_S, own = backward(make(architecture, torch.bfloat16), SHARED_PROMPT)
    found_S, found = backward(fuse(make(architecture, torch.bfloat16)), SHARED_PROMPT)
    assert error(found_S, exact_S) < 1.5 * error(own_S, exact_S) + 1e-3
    assert max(error(found[name], exact[name]) - 1.5 * error(own[name], exact[name]) for name in exact) < 1e-2


@pytest.mark.parametrize("recompute", [True, "selective"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_recomputation_changes_no_bit_of_their_gradients(architecture: str, recompute: Any, kernels: None) -> None:
    """Liger's own rotation changes queries in place. Selective recomputation, which keeps them, would rotate twice."""
    _, expected = backward(fuse(make(architecture)), SHARED_PROMPT)
    _, found = backward(fuse(make(architecture)), SHARED_PROMPT, recompute)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("settings", [{"mlp_bias": True, "attention_bias": True}, {"tie_word_embeddings": True}])
def test_biases_and_tied_embeddings_are_kept(settings: dict[str, bool], kernels: None) -> None:
    own_S, own = backward(make("llama", **settings), SHARED_PROMPT)
    found_S, found = backward(fuse(make("llama", **settings)), SHARED_PROMPT)
    assert error(found_S, own_S) < 1e-5
    assert max(error(found[name], own[name]) for name in own) < 1e-5


@pytest.fixture
def calls(kernels: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts the calls of Liger's functions."""
    from liger_kernel import ops

    counts: Counter[str] = Counter()

    def counted(name: str) -> Any:
        function = getattr(ops, name)

        class Counted:
            @staticmethod
            def apply(*arguments: Any) -> Any:
                counts[name] += 1
                return function.apply(*arguments)

        return Counted

    for name in ("LigerRMSNormFunction", "LigerRopeFunction", "LigerSiLUMulFunction"):
        monkeypatch.setattr(ops, name, counted(name))
    _forget()
    yield counts
    _forget()


def _forget() -> None:
    """The functions that fused classes were made with."""
    fused._forwards.cache_clear()
    fused._fused_class.cache_clear()


@pytest.mark.parametrize("architecture", fused.ARCHITECTURES)
def test_all_norms_rotations_and_mlps_are_fused(architecture: str, calls: Counter[str]) -> None:
    causal_lm = fuse(make(architecture))
    batch_logps(LogprobModel(causal_lm), EXAMPLES, "sdpa", DEVICE)
    norms = 9 if architecture == "qwen3" else 5  # two a layer and the last one; qwen3 also normalises queries and keys
    assert calls == {"LigerRMSNormFunction": norms, "LigerRopeFunction": 2, "LigerSiLUMulFunction": 2}
    assert sum(map(fused.is_fused, causal_lm.modules())) == norms + 4
    before = calls.copy()
    with fused.own_operations(causal_lm):
        assert not any(map(fused.is_fused, causal_lm.modules()))
        batch_logps(LogprobModel(causal_lm), EXAMPLES, "sdpa", DEVICE)
    assert calls == before
    assert sum(map(fused.is_fused, causal_lm.modules())) == norms + 4


def test_nothing_leaks_to_other_models_of_the_process(calls: Counter[str]) -> None:
    before = make("llama")
    names = {name: parameter.shape for name, parameter in before.named_parameters()}
    model = fuse(make("llama"))
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == names
    for other in (before, make("llama")):
        batch_logps(LogprobModel(other), EXAMPLES, "sdpa", DEVICE)
    assert not calls


def test_a_fused_model_is_freed_at_once(kernels: None) -> None:
    """No module refers to itself: workers rely on it when they replace a model in the memory of a GPU."""
    causal_lm = fuse(make("llama"))
    weights = [weakref.ref(module) for module in causal_lm.modules()]
    gc.collect()
    gc.disable()
    try:
        del causal_lm
        assert not any(weight() for weight in weights)
    finally:
        gc.enable()


def test_another_architecture_stays_as_it_is_or_is_refused(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Gemma2Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, head_dim=8
    )
    gemma, gelu = AutoModelForCausalLM.from_config(config), make("llama", hidden_act="gelu")
    for causal_lm, why in ((gemma, "models of type gemma2 cannot be fused"), (gelu, "the activation gelu cannot be")):
        fused.fuse(causal_lm, "auto", on_gpus=True)
        assert not any(map(fused.is_fused, causal_lm.modules()))
        fused.require_usable("auto", causal_lm.config)
        with pytest.raises(UserError, match=f"model.fused_operations: {why}.*, or set it to auto or false"):
            fused.fuse(causal_lm, True, on_gpus=True)
        with pytest.raises(UserError, match=why):
            fused.require_usable(True, causal_lm.config)


def test_auto_means_on_gpus_where_liger_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    installed: dict[str, str] = {"liger-kernel": "0.8.5", "triton": "3.9.0"}
    monkeypatch.setattr(importlib.metadata, "version", _versions(installed))
    assert fused.in_use("auto", on_gpus=True)
    assert fused.in_use(True, on_gpus=True)
    assert not fused.in_use("auto", on_gpus=False)
    assert not fused.in_use(False, on_gpus=True)
    with pytest.raises(UserError, match=r"model\.fused_operations: fused operations need GPUs"):
        fused.in_use(True, on_gpus=False)
    assert fused.conditions("auto", on_gpus=True) == {
        "model.fused_operations": "true",
        "version of liger-kernel": "0.8.5",
        "version of triton": "3.9.0",
    }
    assert fused.conditions("auto", on_gpus=False) == {"model.fused_operations": "false"}
    installed["liger-kernel"] = "0.9.0"
    assert not fused.in_use("auto", on_gpus=True)
    with pytest.raises(UserError, match=r"liger-kernel is 0.9.0, not 0.8.\*; `pip install"):
        fused.in_use(True, on_gpus=True)
    installed.clear()
    assert fused.conditions("auto", on_gpus=True) == {"model.fused_operations": "false"}
    with pytest.raises(UserError, match="liger-kernel is not installed; `pip install"):
        fused.in_use(True, on_gpus=True)


def _versions(installed: dict[str, str]) -> Callable[[str], str]:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    return version


def test_a_worker_fuses_what_it_samples_and_scores_with(calls: Counter[str], tmp_path: Path) -> None:
    tiny.save(tmp_path, seed=1)
    plain = Worker(None, "float32", SHARED_PROMPT, on_gpu=DEVICE.type == "cuda", fused_operations=False)
    expected = plain.logps(str(tmp_path), EXAMPLES)
    requests = [SampleRequest((5, 6, 7), 1), SampleRequest((8, 9), 2)]
    settings = SampleSettings(temperature=1, top_p=1, top_k=0, max_new_tokens=6, stop_ids=(0,))
    sampled = plain.sample(str(tmp_path), requests, settings)
    assert not calls
    worker = Worker(None, "float32", SHARED_PROMPT, on_gpu=DEVICE.type == "cuda", fused_operations=True)
    assert worker.logps(str(tmp_path), EXAMPLES) == pytest.approx(expected, rel=1e-5)
    assert calls["LigerRMSNormFunction"] == 2 * 5  # two passes: one of the check, whose others are plain
    assert worker.sample(str(tmp_path), requests, settings) == sampled
    assert calls["LigerRopeFunction"] > 2 * 2


def test_wrong_kernels_are_noticed_before_scoring(calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from liger_kernel import ops

    class Wrong:
        @staticmethod
        def apply(gate: Tensor, up: Tensor) -> Tensor:
            return torch.nn.functional.gelu(gate) * up

    require_sound_logps(fuse(make("llama")), "sdpa", "a model")
    monkeypatch.setattr(ops, "LigerSiLUMulFunction", Wrong)
    _forget()
    with pytest.raises(UserError, match=r"differ from the model's own .* or model.fused_operations=false"):
        require_sound_logps(fuse(make("llama")), "sdpa", "a model")

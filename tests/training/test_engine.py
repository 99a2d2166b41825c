"""Engines: what recomputation repeats, and which checkpoints are opened."""

import gc
import os
import shutil
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from tests.conftest import Cli, assert_refused
from tests.kernels import require_kernels
from tests.training.conftest import OnlyRank, gathering
from xlr.errors import UserError
from xlr.model.fused import is_fused
from xlr.model.logprobmodel import LogprobModel
from xlr.packing.batch import pack
from xlr.records import Example
from xlr.settings.modelconfig import SHARED_PROMPT
from xlr.settings.trainconfig import TrainConfig
from xlr.shipped import RECIPES
from xlr.zero import engine
from xlr.zero.engine import recomputation

EXAMPLES = [Example((5, 6, 7), ((1, 2, 3, 4), (9, 8))), Example((4,), ((3, 3, 2), (1, 5, 6)))]


class Calls(TorchDispatchMode):
    """Counts the operations that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.counts[operation.overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        return operation(*arguments, **(keywords or {}))


def backward(gradient_checkpointing: Literal[False, True, "selective"]) -> tuple[Counter[str], dict[str, torch.Tensor]]:
    """Run a backward pass. Returns the counts of its operations, and the gradients."""
    causal_lm = tiny.make_model(50, layers=3)
    causal_lm.set_attn_implementation(SHARED_PROMPT)
    if gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable(recomputation(gradient_checkpointing))
    causal_lm.train()
    loss = LogprobModel(causal_lm)(pack(EXAMPLES)).sum()
    with Calls() as calls:
        loss.backward()
    return calls.counts, {name: p.grad for name, p in causal_lm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("gradient_checkpointing", [True, "selective"])
def test_recomputation_changes_no_bit_of_the_gradients(gradient_checkpointing: Literal[True, "selective"]) -> None:
    _, expected = backward(False)
    _, found = backward(gradient_checkpointing)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_selective_recomputes_only_cheap_operations() -> None:
    kept, selective, everything = (backward(mode)[0] for mode in (False, "selective", True))
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert selective["mm"] == kept["mm"] < everything["mm"]
    assert selective[attention] == kept[attention] == 0 < everything[attention]
    assert selective["rsqrt"] == everything["rsqrt"] > kept["rsqrt"]


@pytest.mark.parametrize("recompute", [False, "selective"])
@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_training_with_fused_operations_gives_the_same_gradients(
    zero: str, recompute: Any, only_rank: OnlyRank, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Under ZeRO-3, every weight is gathered for each use, as on many GPUs, also for fused modules."""
    require_kernels()
    train = TrainConfig(
        ds_config=gathering(zero, tmp_path),
        reference_ds_config=gathering("reference", tmp_path),
        gradient_checkpointing=recompute,
    )
    folder, dtype, found = str(tiny_models["initial"]), torch.float32, []
    for operations in (False, True):
        policy = engine.open_policy(folder, train, dtype, SHARED_PROMPT, 3, fused=operations)
        frozen = engine.open_reference(folder, train, dtype, SHARED_PROMPT, operations)
        for opened in (policy, frozen):
            assert sum(map(is_fused, opened.module.modules())) == 9 * operations
        assert all(parameter.numel() == 0 for parameter in policy.parameters()) is (zero == "zero3")
        packed = pack(EXAMPLES).to(only_rank.device)
        logps_S = policy(packed)
        assert torch.equal(logps_S, frozen(packed))
        policy.backward(logps_S.mean())
        found.append((logps_S.detach(), {name: gradient(policy, p) for name, p in policy.module.named_parameters()}))
    (own_S, own), (fused_S, fused) = found
    assert torch.allclose(fused_S, own_S, rtol=1e-5)
    assert own
    assert all((fused[name] - own[name]).norm() < 1e-5 * own[name].norm() for name in own)


def test_a_frozen_reference_frees_its_memory(only_rank: OnlyRank, tiny_models: dict[str, Path]) -> None:
    """At the end of a training, the exported model is opened in its place."""
    train = TrainConfig(reference_ds_config="reference")
    reference = engine.open_reference(str(tiny_models["initial"]), train, torch.float32, SHARED_PROMPT)
    reference(pack(EXAMPLES).to(only_rank.device))
    weights = weakref.ref(next(reference.module.parameters()))
    del reference
    gc.collect()
    assert weights() is None


@pytest.mark.parametrize("zero", ["zero2", "zero3", "zero3_cpu"])
@pytest.mark.parametrize("micro_steps", [1, 16])
def test_gradients_of_many_micro_steps_are_added_up_in_float32(
    zero: str, micro_steps: int, only_rank: OnlyRank, tiny_models: dict[str, Path]
) -> None:
    """A gradient in bfloat16, added up sixteen times, is exactly sixteen times as large."""
    folder, train = str(tiny_models["initial"]), TrainConfig(ds_config=zero)
    packed = pack(EXAMPLES).to(only_rank.device)
    found = []
    for count in (1, 16):
        policy = engine.open_policy(folder, train, torch.bfloat16, SHARED_PROMPT, 3, micro_steps=micro_steps)
        with engine.one_reduction(policy):
            for number in range(count):
                policy.set_gradient_accumulation_boundary(number == count - 1)
                policy.backward(policy(packed).sum(), scale_wrt_gas=False)
        found.append({name: gradient(policy, weight).float() for name, weight in policy.module.named_parameters()})
    once, added = found
    exact = all(torch.equal(added[name], 16 * once[name]) for name in once)
    assert exact is (micro_steps == 16)  # with few micro-steps, sums are in bfloat16


def gradient(policy: Any, parameter: torch.nn.Parameter) -> torch.Tensor:
    found = safe_get_full_grad(parameter)
    assert found is not None
    return torch.as_tensor(found).clone()


class Touch:
    """Executes `touch FILE` when its pickle is opened."""

    def __init__(self, file: Path):
        self._file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._file}",)


def test_a_rank_listens_on_loopback_only(only_rank: OnlyRank) -> None:
    assert {address for address, _ in only_rank.addresses} <= {"127.0.0.1"}


@pytest.mark.parametrize("zero", ["zero2", "zero3", "zero3_cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoints_of_deepspeed_hold_only_allowed_classes_and_can_be_read(
    zero: str, dtype: torch.dtype, only_rank: OnlyRank, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    schedules: list[Any] = ["linear", "cosine", "constant", "constant_with_warmup"]
    train = TrainConfig(ds_config=zero, lr_scheduler_type=schedules[len(zero) % 4])
    policy = engine.open_policy(str(tiny_models["initial"]), train, dtype, SHARED_PROMPT, 3)
    policy.backward(policy(pack(EXAMPLES)).sum())
    policy.step()
    engine.save_checkpoint(policy, tmp_path, 7, keep=1)
    (saved,) = tmp_path.iterdir()
    assert saved.name == "step-00000007-ranks-1"
    found = engine.find_checkpoint(tmp_path)
    assert found == engine.Checkpoint(saved, 7, universal=False)
    again = engine.open_policy(str(tiny_models["initial"]), train, dtype, SHARED_PROMPT, 3, found)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))

    # The same files as those of two ranks: rank 0 converts them. A planted file in either form is refused.
    two = tmp_path / "step-00000008-ranks-2"
    shutil.move(saved, two)
    torch.save([Touch(tmp_path / "executed")], two / "state" / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    with pytest.raises(UserError, match=r"rank_1_mp_rank_00_optim_states.pt: holds posix.system, which would execute"):
        engine.find_checkpoint(tmp_path)
    (two / "state" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    planted = tmp_path / "universal" / two.name / "state" / "zero" / "w"
    planted.mkdir(parents=True)
    torch.save(Touch(tmp_path / "executed"), planted / "fp32.pt")
    with pytest.raises(UserError, match=r"w/fp32.pt: holds posix.system, which would execute"):
        engine.find_checkpoint(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_that_is_exchanged_after_the_check_executes_nothing_either(
    only_rank: OnlyRank, tmp_path: Path
) -> None:
    torch.save(Touch(tmp_path / "executed"), tmp_path / "x.pt")
    with pytest.raises(Exception, match=r"Unsupported|blocked"):
        torch.load(tmp_path / "x.pt", weights_only=False)  # as DeepSpeed does
    assert not (tmp_path / "executed").exists()


def test_folders_with_other_names_are_no_checkpoints(only_rank: OnlyRank, tmp_path: Path) -> None:
    for name in ("step-", "step-00000001", "step-x-ranks-1", "step-00000001-ranks-1.old", ".step-00000001-ranks-1.tmp"):
        (tmp_path / name).mkdir()
    assert engine.find_checkpoint(tmp_path) is None


def test_training_refuses_a_planted_checkpoint_and_executes_nothing(
    cli_rank: Cli,
    tiny_tree: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
) -> None:
    preferences = tmp_path / "preferences.jsonl"
    lines = (RECIPES / "quickstart" / "preferences.jsonl").read_text(encoding="utf-8").splitlines(True)
    preferences.write_text("".join(lines[:4]), encoding="utf-8")
    align = tiny_tree["train"] | {"preferences": str(preferences)}
    path = write_config(tiny_tree | {"model": {"initial": tiny_tree["model"]["initial"]}, "align": align})
    state = tmp_path / "run" / "iter0" / "model.checkpoints" / "step-00000001-ranks-1" / "state"
    state.mkdir(parents=True)
    file = state / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({"module": [Touch(tmp_path / "executed")]}, file)
    assert_refused(cli_rank("align", path), f"{file}: holds posix.system, which would execute code when it is opened")
    assert not (tmp_path / "executed").exists()

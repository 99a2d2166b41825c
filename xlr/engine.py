"""DeepSpeed: the policy's engine and the frozen reference's, their checkpoints, and export. Its only home.

Every function here that touches weights is a collective: all ranks call it.
"""

import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from transformers import get_scheduler
from transformers.integrations import HfDeepSpeedConfig

from xlr import models
from xlr.config import TrainConfig
from xlr.dsconfig import policy_config, reference_config
from xlr.errors import UserError
from xlr.launch import Ranks
from xlr.packing import LogprobModel
from xlr.store import atomic_path, remove, write_json

SHARD_BYTES = 4_500_000_000
_STATE = "state"
_TIMEOUT = timedelta(hours=1)


def init_distributed(ranks: Ranks) -> torch.device:
    """Join the process group: NCCL on GPUs, gloo on CPUs.

    Raises:
        UserError: nobody said where the first rank listens.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        raise UserError(
            f"rank {ranks.rank} of {ranks.world_size}: MASTER_ADDR and MASTER_PORT are not set; the job script sets "
            "them to the first node's name and a free port"
        )
    # DeepSpeed reads them from the environment, where srun has other names for them.
    names = {"RANK": ranks.rank, "WORLD_SIZE": ranks.world_size, "LOCAL_RANK": ranks.local_rank}
    os.environ |= {name: str(value) for name, value in names.items()}
    gpus = torch.cuda.device_count()  # one, where Slurm shows each task its own GPU alone
    device = torch.device("cuda", ranks.local_rank % gpus) if gpus else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Shared-memory collectives between CPU ranks would be compiled first, for half a minute and with a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with contextlib.redirect_stdout(sys.stderr):
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            timeout=_TIMEOUT,
            rank=ranks.rank,
            world_size=ranks.world_size,
            verbose=False,
        )
    return device


def close_distributed() -> None:
    """Leave the process group."""
    dist.destroy_process_group()


def open_policy(model: str, train: TrainConfig, dtype: torch.dtype, attn_implementation: str, total_steps: int) -> Any:
    """The policy under ZeRO with AdamW and its learning-rate schedule.

    Raises:
        UserError: the model or the DeepSpeed JSON is not usable.
    """
    tree = policy_config(train, dtype == torch.bfloat16)
    causal_lm = _load_sharded(model, tree, dtype, attn_implementation)
    if train.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    causal_lm.train()

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        warmup = math.ceil(train.warmup_ratio * total_steps)
        return get_scheduler(train.lr_scheduler_type, optimizer, warmup, total_steps)

    wrapped = LogprobModel(causal_lm)
    engine, *_ = deepspeed.initialize(
        model=wrapped, model_parameters=wrapped.parameters(), config=tree, lr_scheduler=schedule
    )
    return engine


def open_reference(model: str, train: TrainConfig, dtype: torch.dtype, attn_implementation: str) -> Any:
    """The frozen reference, partitioned over the same ranks, without gradients or optimizer."""
    tree = reference_config(train, dtype == torch.bfloat16)
    causal_lm = _load_sharded(model, tree, dtype, attn_implementation).requires_grad_(False)
    engine, *_ = deepspeed.initialize(model=LogprobModel(causal_lm), config=tree)
    engine.eval()
    return engine


def _load_sharded(model: str, tree: dict[str, Any], dtype: torch.dtype, attn_implementation: str) -> Any:
    """Weights straight into their partitions: no rank holds the whole model."""
    zero3 = HfDeepSpeedConfig(tree)  # transformers finds it through a weak reference while this name lives
    causal_lm = models.load_causal_lm(model, dtype, attn_implementation)
    del zero3
    damaged = [name for name, parameter in causal_lm.named_parameters() if not _own_part(parameter).isfinite().all()]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, damaged[:1])
    if any(found):
        models.refuse_damaged(model, next(names for names in found if names)[0])
    return causal_lm


def _own_part(parameter: Any) -> torch.Tensor:
    """The values of a parameter that this rank holds, without the padding of the last ranks' partitions."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter
    size = parameter.ds_tensor.numel()
    own = min(max(parameter.ds_numel - dist.get_rank() * size, 0), size)
    return parameter.ds_tensor.flatten()[:own]


def gathered(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter whole, one after the other, by its name in the Hugging Face model."""
    for name, parameter in engine.module.causal_lm.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            yield name, parameter


def save_checkpoint(engine: Any, folder: Path, step: int, keep: int) -> None:
    """Write `step-{step}-ranks-{world size}` whole or not at all, then remove the older ones.

    Args:
        keep: how many of the newest stay.
    """
    target = folder / f"step-{step:08d}-ranks-{dist.get_world_size()}"
    temporary = folder / f".{target.name}.tmp"
    if dist.get_rank() == 0:
        remove(temporary)
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    engine.save_checkpoint(str(temporary), tag=_STATE)
    for file in (temporary / _STATE).glob(f"*rank_{dist.get_rank()}_*"):
        with file.open("rb") as written:
            os.fsync(written.fileno())
    dist.barrier()
    if dist.get_rank() == 0:
        remove(target)
        os.replace(temporary, target)
        for old in checkpoints(folder)[:-keep]:
            remove(old)
    dist.barrier()


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def load_checkpoint(engine: Any, folder: Path) -> int:
    """Continue from the newest complete checkpoint.

    Returns:
        The number of optimizer steps it has behind it; 0 where there is none.

    Raises:
        UserError: it was written by another number of ranks, or is damaged.
    """
    found: list[Any] = [checkpoints(folder)[-1:] if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    if not found[0]:
        return 0
    checkpoint = found[0][0]
    _, step, _, ranks = checkpoint.name.split("-")
    if int(ranks) != dist.get_world_size():
        raise UserError(
            f"{checkpoint}: written by {ranks} ranks, and now there are {dist.get_world_size()}; start as many "
            "(train.processes), or delete the folder to train this iteration from its beginning"
        )
    path, _ = engine.load_checkpoint(str(checkpoint), tag=_STATE)
    if path is None:
        raise UserError(f"{checkpoint}: cannot be read; delete the folder to train this iteration from its beginning")
    return int(step)


def export(engine: Any, source: str, target: Path) -> None:
    """Write a Hugging Face folder: sharded safetensors, configuration, tokenizer; rank 0 holds one shard at most.

    Args:
        source: the model that training started from, for everything but the weights.
    """
    sizes = {
        name: getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        for name, parameter in engine.module.causal_lm.named_parameters()
    }
    shard_of = _shards(sizes)
    if dist.get_rank() != 0:
        for _ in gathered(engine):
            pass
        return
    with atomic_path(target) as folder:
        folder.mkdir(parents=True)
        tensors: dict[str, torch.Tensor] = {}
        file = next(iter(shard_of.values()))
        for name, parameter in gathered(engine):
            if shard_of[name] != file:
                save_file(tensors, folder / file, metadata={"format": "pt"})
                tensors, file = {}, shard_of[name]
            tensors[name] = parameter.detach().cpu().clone().contiguous()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        if len(set(shard_of.values())) > 1:
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": shard_of}
            write_json(folder / "model.safetensors.index.json", index)
        _copy_configuration(engine.module.causal_lm, source, folder)


def _shards(sizes: dict[str, int]) -> dict[str, str]:
    """Tensor name -> file name, filling files in order up to `SHARD_BYTES`."""
    number, filled = 0, 0
    numbers: dict[str, int] = {}
    for name, size in sizes.items():
        if filled and filled + size > SHARD_BYTES:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += size
    if number == 0:
        return dict.fromkeys(sizes, "model.safetensors")
    return {name: f"model-{n + 1:05d}-of-{number + 1:05d}.safetensors" for name, n in numbers.items()}


def _copy_configuration(causal_lm: Any, source: str, folder: Path) -> None:
    from transformers import AutoTokenizer

    causal_lm.config.save_pretrained(folder)
    causal_lm.generation_config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)

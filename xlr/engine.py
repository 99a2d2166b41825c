"""DeepSpeed: the policy's engine and the frozen reference's, their checkpoints, and export. Its only home.

Every function here that touches weights is a collective: all ranks call it.
"""

import contextlib
import json
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
from xlr.errors import UserError
from xlr.launch import Ranks
from xlr.packing import LogprobModel
from xlr.shipped import shipped
from xlr.store import atomic_path, remove, write_json

SHARD_BYTES = 4_500_000_000
_STATE = "state"
_TIMEOUT = timedelta(hours=1)


def init_distributed(ranks: Ranks) -> torch.device:
    """Join the process group: NCCL on GPUs, gloo on CPUs."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    device = torch.device("cuda", ranks.local_rank) if torch.cuda.is_available() else torch.device("cpu")
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


def ds_config(name: str, owned: dict[str, Any]) -> dict[str, Any]:
    """A DeepSpeed JSON with the configuration's own numbers filled in.

    The JSON owns the ZeRO topology; batch size, learning rate, clipping and precision belong to the
    configuration. A key of theirs in the JSON may be "auto" or the same value.

    Args:
        name: a file, or the name of a shipped one.
        owned: dotted key -> the configuration's value.

    Raises:
        UserError: the file cannot be read, or contradicts the configuration.
    """
    path = Path(name) if name.endswith(".json") else shipped("ds_configs", f"{name}.json")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a DeepSpeed JSON file ({error})") from error
    for dotted, value in owned.items():
        *sections, key = dotted.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        if node.get(key, "auto") not in ("auto", value):
            raise UserError(
                f"{path}: {dotted} is {node[key]!r}, the configuration says {value!r}; "
                'remove it from the JSON or write "auto"'
            )
        node[key] = value
    # Micro-batches hold as many pairs as fit a token budget, so xlr counts pairs and sets the boundaries itself.
    tree |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "steps_per_print": 10**9}
    tree.pop("train_batch_size", None)
    return tree


def policy_config(train: TrainConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The policy engine's DeepSpeed configuration."""
    tree = ds_config(
        train.ds_config,
        _precision(dtype)
        | {
            "train_batch_size": train.global_batch_size,
            "gradient_clipping": train.max_grad_norm,
            "optimizer.type": "AdamW",
            "optimizer.params.lr": train.learning_rate,
            "optimizer.params.betas": [train.adam_beta1, train.adam_beta2],
            "optimizer.params.eps": train.adam_epsilon,
            "optimizer.params.weight_decay": train.weight_decay,
        },
    )
    # torch's fused AdamW needs no compiler; an offloaded optimizer needs DeepSpeed's own, compiled at first use.
    offloaded = tree.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none") != "none"
    if not offloaded:
        tree["optimizer"]["params"] |= {"torch_adam": True, "fused": True}
    return tree


def _precision(dtype: torch.dtype) -> dict[str, Any]:
    return {"bf16.enabled": dtype == torch.bfloat16}


def open_policy(model: str, train: TrainConfig, dtype: torch.dtype, attn_implementation: str, total_steps: int) -> Any:
    """The policy under ZeRO with AdamW and its learning-rate schedule.

    Raises:
        UserError: the model or the DeepSpeed JSON is not usable.
    """
    tree = policy_config(train, dtype)
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
    tree = ds_config(train.reference_ds_config, _precision(dtype))
    causal_lm = _load_sharded(model, tree, dtype, attn_implementation).requires_grad_(False)
    engine, *_ = deepspeed.initialize(model=LogprobModel(causal_lm), config=tree)
    engine.eval()
    return engine


def _load_sharded(model: str, tree: dict[str, Any], dtype: torch.dtype, attn_implementation: str) -> Any:
    """Weights straight into their partitions: no rank holds the whole model."""
    zero3 = HfDeepSpeedConfig(tree)  # transformers finds it through a weak reference while this name lives
    causal_lm = models.load_causal_lm(model, dtype, attn_implementation)
    del zero3
    damaged = [
        name
        for name, parameter in causal_lm.named_parameters()
        if not getattr(parameter, "ds_tensor", parameter).isfinite().all()
    ]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, damaged[:1])
    if any(found):
        models.refuse_damaged(model, next(names for names in found if names)[0])
    return causal_lm


def gathered(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter whole, one after the other, by its name in the Hugging Face model."""
    for name, parameter in engine.module.causal_lm.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            yield name, parameter


def save_checkpoint(engine: Any, folder: Path, step: int, keep: int) -> None:
    """Write `step-{step}` whole or not at all, then remove the older ones.

    Args:
        keep: how many of the newest stay.
    """
    target = folder / f"step-{step:08d}"
    temporary = folder / f".step-{step:08d}.tmp"
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
    """
    found: list[Any] = [checkpoints(folder)[-1:] if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    if not found[0]:
        return 0
    engine.load_checkpoint(str(found[0][0]), tag=_STATE)
    return int(found[0][0].name.removeprefix("step-"))


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

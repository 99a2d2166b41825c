"""DeepSpeed engines of the policy and the frozen reference, and checkpoints.

Every function that touches weights is a collective: all ranks call it.
"""

import contextlib
import logging
import math
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import get_scheduler
from transformers.integrations import HfDeepSpeedConfig

from xlr.cluster.environment import SAFE_PATH
from xlr.cluster.exchange import gather, others_waiting, require_one_environment
from xlr.cluster.ranks import RENDEZVOUS, Ranks
from xlr.errors import UserError
from xlr.leases import process
from xlr.model import weights
from xlr.model.fused import fuse
from xlr.model.gpus import set_up_gpus
from xlr.model.logprobmodel import LogprobModel
from xlr.model.products import compute_repeatably
from xlr.records import FusedOperations
from xlr.run.files import atomic_path, remove
from xlr.settings.trainconfig import TrainConfig
from xlr.versions import FUSED, LIBRARIES, versions
from xlr.zero import pickles, universal
from xlr.zero.dsconfig import policy_config, reference_config
from xlr.zero.hiding import hidden

with hidden("mlflow"):  # DeepSpeed's autotuner would import it, which takes each rank 1.5 seconds
    import deepspeed
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.utils import set_z3_leaf_modules

# Selective recomputation keeps the outputs of these operations and of attention kernels.
_MATRIX_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
_ATTENTION_KERNELS = ("dot_product", "flash_attn", "varlen_attn")  # parts of their names

_COMPLETE = re.compile(r"step-[0-9]{8,}-ranks-[0-9]+")
_STATE = "state"
_UNIVERSAL = "universal"
_COLLECTIVE = timedelta(minutes=30)  # rank 0 alone loads and checks models, which the others wait for
_CONVERSION = timedelta(hours=6)  # of a checkpoint of 100 GB, on a slow disk
_CONVERTERS = 4  # processes; each reads files of a rank, of several GB


def init_distributed(ranks: Ranks) -> torch.device:
    """Join the process group: NCCL on GPUs, gloo on CPUs. Ranks meet through the launcher's file, or through a port.

    Raises:
        UserError: MASTER_ADDR or MASTER_PORT is not set, or nodes have other versions of libraries than the first.
    """
    compute_repeatably()
    set_up_gpus()
    pickles.forbid_code(universal.CLASSES)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    file = os.environ.get(RENDEZVOUS)
    if file is None and not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        raise UserError(
            f"rank {ranks.rank} of {ranks.world_size}: MASTER_ADDR and MASTER_PORT are not set; the job script sets "
            "them to the first node's name and a free port"
        )
    device = device_of(ranks.local_rank, torch.cuda.device_count())
    # DeepSpeed reads these variables, and takes LOCAL_RANK for the GPU's index. srun sets them under other names.
    index = ranks.local_rank if device.index is None else device.index
    names = {"RANK": ranks.rank, "WORLD_SIZE": ranks.world_size, "LOCAL_RANK": index}
    os.environ |= {name: str(value) for name, value in names.items()}
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # DeepSpeed's shared-memory collectives for CPU ranks need a compiler and half a minute of compilation.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")  # what each rank did last, in /tmp
    with contextlib.redirect_stdout(sys.stderr):
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            timeout=_COLLECTIVE,
            init_method=None if file is None else f"file://{file}",
            rank=ranks.rank,
            world_size=ranks.world_size,
            verbose=False,
        )
    require_one_environment(socket.gethostname(), versions((*LIBRARIES, *FUSED)))
    return device


def least_memory(device: torch.device) -> float:
    """Bytes of the rank that has the least memory: of its GPU, or its share of its host's. A collective."""
    gpu = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if gpu else psutil.virtual_memory().total
    found = gather([socket.gethostname(), total])
    sharing = Counter(host for host, _ in found)
    return float(min(own / (1 if gpu else sharing[host]) for host, own in found))


def device_of(local_rank: int, gpus: int) -> torch.device:
    """The device of a rank on a node.

    Args:
        gpus: how many this process sees: 1 if Slurm shows each task only its own.
    """
    return torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")


def close_distributed() -> None:
    """Leave the process group."""
    dist.destroy_process_group()


def open_policy(
    model: str,
    train: TrainConfig,
    dtype: torch.dtype,
    attn_implementation: str,
    total_steps: int,
    checkpoint: "Checkpoint | None" = None,
    fused: FusedOperations = False,
    micro_steps: int = 1,
) -> Any:
    """Open the policy under ZeRO with AdamW and a learning-rate schedule, and load the checkpoint if there is one.

    Args:
        micro_steps: the most micro-steps of a step.

    Raises:
        UserError: the model, the DeepSpeed JSON or the checkpoint is not usable.
    """
    tree = policy_config(train, dtype == torch.bfloat16, _hidden_size(model), micro_steps)
    tree["checkpoint"] = {"load_universal": checkpoint is not None and checkpoint.universal}
    causal_lm = _load_sharded(model, tree, dtype, attn_implementation, fused)
    if train.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable(recomputation(train.gradient_checkpointing))
    causal_lm.train()

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        warmup = math.ceil(train.warmup_ratio * total_steps)
        return get_scheduler(train.lr_scheduler_type, optimizer, warmup, total_steps)

    wrapped = LogprobModel(causal_lm)
    engine, *_ = deepspeed.initialize(
        model=wrapped, model_parameters=wrapped.parameters(), config=tree, lr_scheduler=schedule
    )
    if checkpoint is not None:
        path, _ = engine.load_checkpoint(str(checkpoint.folder), tag=_STATE)
        if path is None:
            raise UserError(
                f"{checkpoint.folder}: cannot be read; delete the folder and start again: training continues from the "
                "previous checkpoint, or from the first step if there is none"
            )
    return engine


def recomputation(gradient_checkpointing: Literal[True, "selective"]) -> dict[str, Any]:
    """Arguments of transformers' `gradient_checkpointing_enable`: recompute whole layers, or only cheap operations."""
    arguments: dict[str, Any] = {"use_reentrant": False}
    if gradient_checkpointing == "selective":
        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
    return arguments


def _keep_products(_context: Any, operation: Any, *_arguments: Any, **_keywords: Any) -> CheckpointPolicy:
    """Keep outputs of matrix products and attention kernels; recompute norms, activations and rotary embeddings."""
    name = str(operation)
    if operation in _MATRIX_PRODUCTS or any(kernel in name for kernel in _ATTENTION_KERNELS):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def open_reference(
    model: str, train: TrainConfig, dtype: torch.dtype, attn_implementation: str, fused: FusedOperations = False
) -> Any:
    """Open the frozen reference on the same ranks, without gradients or optimizer."""
    tree = reference_config(train, dtype == torch.bfloat16, _hidden_size(model))
    causal_lm = _load_sharded(model, tree, dtype, attn_implementation, fused).requires_grad_(False)
    engine, *_ = deepspeed.initialize(model=LogprobModel(causal_lm), config=tree)
    engine.eval()
    if engine.module in FWD_MODULE_STACK:  # there DeepSpeed would keep it, and its memory, to the end of the process
        FWD_MODULE_STACK.remove(engine.module)
    return engine


def _hidden_size(model: str) -> int:
    return int(weights.load_config(model).get_text_config().hidden_size)


@contextlib.contextmanager
def one_reduction(engine: Any) -> Iterator[None]:
    """On a single rank, reduce gradients once at the end of the block instead of after every micro-batch.

    That saves copying all gradients per micro-batch and costs no memory, as nothing is partitioned. With several ranks,
    each would have to keep whole gradients, so every micro-batch is reduced. So it is where gradients are added up in
    another precision than that of the weights, which only a reduction does.
    """
    weights_dtype = next(engine.module.parameters()).dtype
    accumulated = engine.get_data_types()[1]
    if dist.get_world_size() == 1 and accumulated == weights_dtype:
        with engine.coalesce_grad_reduction():
            yield
    else:
        yield


def _load_sharded(
    model: str, tree: dict[str, Any], dtype: torch.dtype, attn_implementation: str, fused: FusedOperations
) -> Any:
    """Load weights directly into their ZeRO partitions, so that no rank holds the whole model.

    Raises:
        UserError: a weight on any rank is not finite, or operations cannot be fused as they should.
    """
    zero3 = HfDeepSpeedConfig(tree)  # transformers holds only a weak reference to it
    causal_lm = weights.load_causal_lm(model, dtype, attn_implementation)
    del zero3
    weights.without_dropout(causal_lm)
    fuse(causal_lm, fused, torch.cuda.is_available())
    damaged = [name for name, parameter in causal_lm.named_parameters() if not _own_part(parameter).isfinite().all()]
    # Gather whole layers: fewer hooks and larger collectives than one per linear module.
    if layers := {type(layer) for layer in getattr(causal_lm.get_decoder(), "layers", ())}:
        set_z3_leaf_modules(causal_lm, list(layers))
    if found := [name for names in gather(damaged[:1]) for name in names]:
        weights.refuse_damaged(model, found[0])
    return causal_lm


def _own_part(parameter: Any) -> torch.Tensor:
    """This rank's values of a parameter, without the padding of ZeRO's partitions."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter
    size = parameter.ds_tensor.numel()
    own = min(max(parameter.ds_numel - dist.get_rank() * size, 0), size)
    return parameter.ds_tensor.flatten()[:own]


def gathered(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter, gathered, with its name in the Hugging Face model."""
    for name, parameter in engine.module.causal_lm.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            yield name, parameter


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: `step` optimizer steps are behind it."""

    folder: Path
    step: int
    universal: bool


def save_checkpoint(engine: Any, folder: Path, step: int, keep: int) -> Path:
    """Write the checkpoint `step-{step}-ranks-{world size}` atomically, then remove old ones; return its folder.

    Args:
        keep: how many of the newest checkpoints to keep.
    """
    target = folder / f"step-{step:08d}-ranks-{dist.get_world_size()}"
    # Ranks of another start, if any are still alive, write under another name. `Artifact.tidy` removes what they leave.
    temporary = folder / f".{target.name}.{gather(process.token())[0]}.tmp"
    if dist.get_rank() == 0:
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
        for old in _complete(folder)[:-keep]:
            remove(old)
        remove(folder / _UNIVERSAL)
    dist.barrier()
    return target


def _complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _COMPLETE.fullmatch(path.name))


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint that this number of ranks can read; None if there is no checkpoint.

    A checkpoint of another number of ranks is first converted to DeepSpeed's universal format, in a folder beside it.

    Raises:
        UserError: it cannot be converted, holds more than data, or has changed since it was written.
    """
    found: list[str | None] = [None, None]
    with others_waiting(_CONVERSION):
        if dist.get_rank() == 0 and _complete(folder):
            try:
                found[0] = str(_readable(_complete(folder)[-1], folder))
            except UserError as error:
                found[1] = str(error)
    path, refusal = gather(found)[0]
    if refusal is not None:
        raise UserError(refusal)
    if path is None:
        return None
    _require_intact(Path(path))
    _, step, _, ranks = Path(path).name.split("-")
    return Checkpoint(Path(path), int(step), int(ranks) != dist.get_world_size())


def _require_intact(checkpoint: Path) -> None:
    """Check the content of a checkpoint's files, which the ranks divide among them.

    Raises:
        UserError: a file has changed since it was written.
    """
    refusal: str | None = None
    try:
        pickles.require_intact(checkpoint, dist.get_rank(), dist.get_world_size())
    except UserError as error:
        refusal = str(error)
    for message in gather(refusal):
        if message is not None:
            raise UserError(message)


def _readable(newest: Path, folder: Path) -> Path:
    """The checkpoint, or its universal form if another number of ranks wrote it. Checks that both hold only data."""
    pickles.require_data(newest)
    if int(newest.name.rpartition("-")[2]) == dist.get_world_size():
        return newest
    converted = _to_universal(newest, folder / _UNIVERSAL)
    pickles.require_data(converted)
    return converted


def _to_universal(checkpoint: Path, folder: Path) -> Path:
    """Convert a checkpoint to one file per parameter and optimizer state, instead of one per rank."""
    target = folder / checkpoint.name
    if target.is_dir():
        return target
    workers = str(min(_CONVERTERS, os.cpu_count() or 1))
    with atomic_path(target) as temporary:
        (temporary / _STATE).mkdir(parents=True)
        command = [sys.executable, "-m", universal.__name__, str(checkpoint / _STATE), str(temporary / _STATE), workers]
        own = SAFE_PATH | {"CUDA_VISIBLE_DEVICES": ""}
        result = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"code {result.returncode}"])[-1]
            raise UserError(
                f"{checkpoint}: was written by another number of ranks, and converting it to {dist.get_world_size()} "
                f"ranks failed ({reason}); set train.processes to the number in its name"
            )
    return target

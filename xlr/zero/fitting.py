"""How many tokens a rank computes at once where `micro_batch_tokens` is auto: as many as fit, by `maths.memory`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlr.maths import memory
from xlr.maths.logprobs import GPU_CHUNK_TOKENS
from xlr.maths.memory import BF16, Shape, Zero
from xlr.run.files import write_json
from xlr.settings.trainconfig import TrainConfig
from xlr.zero.dsconfig import policy_config
from xlr.zero.halving import sizes

FILE = "chosen_micro_batches.json"  # apart from that of `halving`, whose changes let a job start its ranks again
FEWEST = 512
_TOKENS = (16384, 8192, 4096, 2048, 1024, FEWEST)  # beyond the first, a GPU computes no faster
_ROOM = 0.95  # share of the memory that may be filled


def largest(train: TrainConfig, shape: Shape, ranks: int, available: float, width: int, chunk: int) -> int | None:
    """The most tokens whose peak fits; None if not even `FEWEST` do.

    Args:
        available: bytes of memory of a rank.
        width: bytes of a weight.
        chunk: rows of logits in memory at once.

    Raises:
        UserError: the DeepSpeed JSON is not usable.
    """
    zero, frozen = zero_of(train, width, shape), train.used_reference == "frozen"
    beside = memory.beside(gpu=chunk == GPU_CHUNK_TOKENS)

    def fits(tokens: int) -> bool:
        parts = memory.peak(shape, ranks, tokens, train.gradient_checkpointing, frozen, chunk, zero, width)
        return sum(parts.values()) + beside <= _ROOM * available

    return next(filter(fits, _TOKENS), None)


def sized(train: TrainConfig, shape: Shape, ranks: int, available: float, width: int, chunk: int) -> TrainConfig:
    """The settings with a number in place of auto; see `largest`. Should memory run out nevertheless, see `halving`."""
    if train.micro_batch_tokens != "auto":
        return train
    tokens = largest(train, shape, ranks, available, width, chunk) or FEWEST
    return train.model_copy(update={"micro_batch_tokens": tokens})


def choice(run: Path, key: str) -> int | None:
    """The tokens that were chosen in a run under the circumstances of `key_of`, if they were.

    Raises:
        UserError: the file of the run is damaged.
    """
    return sizes(run / FILE).get(key)


def keep(run: Path, key: str, tokens: int) -> None:
    """Record the tokens that were chosen in a run."""
    write_json(run / FILE, sizes(run / FILE) | {key: tokens})


def key_of(stage: str, train: TrainConfig, ranks: int, available: float) -> str:
    """What a choice depends on. On other machines, or with other settings, a stage chooses again."""
    where = f"{ranks} ranks of {available / 1e9:.0f} GB"
    return f"{stage}, {where}, {train.ds_config}, {train.gradient_checkpointing}, {train.used_reference}"


def zero_of(train: TrainConfig, width: int, shape: Shape) -> Zero:
    """What decides memory in the DeepSpeed JSON of a training.

    Raises:
        UserError: it is not usable.
    """
    tree: Mapping[str, Any] = policy_config(train, width == BF16, shape.hidden)["zero_optimization"]

    def offloaded(section: str) -> bool:
        return tree.get(section, {}).get("device", "none") != "none"

    given = Zero()
    return Zero(
        int(tree.get("stage3_max_live_parameters", given.live)),
        int(tree.get("reduce_bucket_size", given.bucket)),
        int(tree.get("sub_group_size", given.sub_group)),
        tree["stage"],
        offloaded("offload_optimizer"),
        offloaded("offload_param"),
        tree.get("zero_hpz_partition_size", 1),
    )

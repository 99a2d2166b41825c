"""The memory of one training rank by formula: what ZeRO-3 keeps, and what a backward pass and an update need beside it.

Bytes. `R` ranks, `P` parameters, `T` tokens of a micro-batch, `L` layers, `D` hidden size, `I` intermediate size,
`V` vocabulary. The parameters of norms are left out, as they are few.
"""

from dataclasses import dataclass
from typing import Literal

Checkpointing = Literal[True, False, "selective"]

BF16, FP32, FP64 = 2, 4, 8


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def embedding(self) -> int:
        """Parameters of one embedding, input or output."""
        return self.vocabulary * self.hidden

    @property
    def keys(self) -> int:
        """Width of a token's keys."""
        return self.hidden * self.kv_heads // self.heads

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return self.hidden * (2 * self.hidden + 2 * self.keys + 3 * self.intermediate)

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.layers * self.layer + self.embedding * (1 if self.tied else 2)


LLAMA3_8B = Shape(4096, 32, 32, 8, 14336, 128256, tied=False)
LLAMA32_1B = Shape(2048, 16, 32, 8, 8192, 128256, tied=True)


@dataclass(frozen=True)
class Zero:
    """The values of the DeepSpeed JSON that decide memory; by default those of `zero3`, in elements."""

    live: int = 2_000_000_000
    bucket: int = 200_000_000
    sub_group: int = 1_000_000_000


def kept(shape: Shape, ranks: int, frozen: bool, zero: Zero) -> dict[str, int]:
    """What a rank keeps from the first update on.

    Args:
        frozen: whether the reference is beside the policy.
    """
    own = shape.parameters // ranks
    return {
        "bf16 weights, own shard": BF16 * own,
        "fp32 master": FP32 * own,
        "fp32 Adam moments": 2 * FP32 * own,
        "bf16 gradients, own shard": BF16 * own,
        "reduce bucket": BF16 * zero.bucket,
        "frozen reference, own shard": BF16 * own if frozen else 0,
    }


def activations(shape: Shape, tokens: int, checkpointing: Checkpointing) -> int:
    """Activations of a micro-batch: those kept for the backward pass, and those of the layer that it is in."""
    norms = 2 * (FP32 + 2 * BF16) * shape.hidden
    attention = BF16 * (5 * shape.hidden + 4 * shape.keys)
    layer = norms + attention + BF16 * (4 * shape.hidden + 4 * shape.intermediate)
    gradients = BF16 * (3 * shape.hidden + 2 * shape.intermediate)
    products = BF16 * (5 * shape.hidden + 2 * shape.keys + 2 * shape.intermediate)
    kept_by_layer = {True: BF16 * shape.hidden, "selective": products, False: layer}[checkpointing]
    recomputed = layer if checkpointing else 0
    return tokens * (shape.layers * kept_by_layer + recomputed + gradients)


def backward(
    shape: Shape, ranks: int, tokens: int, checkpointing: Checkpointing, chunk: int, zero: Zero
) -> dict[str, int]:
    """What a backward pass needs beside what is kept.

    Args:
        chunk: rows of logits in memory at once.
    """
    several = ranks > 1
    # A single rank reduces its gradients once, at the end of the step. Several ranks reduce them layer by layer.
    whole = shape.embedding + shape.layer if several else shape.parameters
    return {
        "gathered weights": BF16 * min(zero.live, shape.parameters) if several else 0,
        "whole gradients": BF16 * whole,
        "head: fp32 gradient and a chunk's product": (FP32 + BF16) * shape.embedding,
        "head: a chunk of logits and its gradient": (FP32 + BF16) * chunk * shape.vocabulary,
        "activations": activations(shape, tokens, checkpointing),
    }


def update(shape: Shape, ranks: int, zero: Zero) -> dict[str, int]:
    """What an update needs beside what is kept: for the norm, or then for a sub-group of parameters.

    The norm converts one gradient after the other to float64. DeepSpeed joins the gradients of a sub-group, which is at
    least one parameter, and then converts them to float32.
    """
    own, largest = shape.parameters // ranks, shape.embedding // ranks
    flat = (BF16 + FP32) * min(own, max(zero.sub_group, largest))
    return {"norm, or flat gradients of a sub-group": max(flat, FP64 * largest)}


def peak(
    shape: Shape, ranks: int, tokens: int, checkpointing: Checkpointing, frozen: bool, chunk: int, zero: Zero
) -> dict[str, int]:
    """The parts of a rank's peak: what is kept, and the larger of a backward pass and an update.

    CUDA's context and the allocator's fragments, about 3 GB on a GPU, come on top.

    Args:
        frozen: whether the reference is beside the policy.
        chunk: rows of logits in memory at once.
    """
    phases = (backward(shape, ranks, tokens, checkpointing, chunk, zero), update(shape, ranks, zero))
    return kept(shape, ranks, frozen, zero) | max(phases, key=lambda parts: sum(parts.values()))

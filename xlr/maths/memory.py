"""The memory of one process by formula: a training rank under ZeRO, a scoring worker, a sampling worker.

Bytes. `R` ranks, `P` parameters, `T` tokens of a batch, `L` layers, `D` hidden size, `I` intermediate size, `V`
vocabulary. The width is that of a weight: 2 bytes in bfloat16, 4 in float32.
"""

from dataclasses import dataclass
from typing import Literal

Checkpointing = Literal[True, False, "selective"]

BF16, FP32, FP64 = 2, 4, 8
_GPU_BESIDE, _CPU_BESIDE = 3e9, 0.6e9
CHECKPOINT_BYTES = 3 * FP32
"""Of a parameter, in a checkpoint: weights and two moments in float32."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model. A layer without parameters of its own has those of a Llama layer, without its norms."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    head: int | None = None
    """Width of a head, if it is not the hidden size over the heads."""
    layer_parameters: int | None = None
    """Parameters of one layer on average, norms included."""
    active_parameters: int | None = None
    """Those of them that a token meets: in a mixture of experts fewer than all."""

    @property
    def embedding(self) -> int:
        """Parameters of one embedding, input or output."""
        return self.vocabulary * self.hidden

    @property
    def queries(self) -> int:
        """Width of a token's queries."""
        return self.heads * (self.head or self.hidden // self.heads)

    @property
    def keys(self) -> int:
        """Width of a token's keys."""
        return self.queries * self.kv_heads // self.heads

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        llama = self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.intermediate)
        return self.layer_parameters or llama

    @property
    def active(self) -> int:
        """Parameters that multiply a token: those of all layers, without the experts that it skips, and the head."""
        return self.layers * (self.active_parameters or self.layer) + self.embedding

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.layers * self.layer + self.embedding * (1 if self.tied else 2)


LLAMA3_8B = Shape(4096, 32, 32, 8, 14336, 128256, tied=False)
LLAMA32_1B = Shape(2048, 16, 32, 8, 8192, 128256, tied=True)


@dataclass(frozen=True)
class Zero:
    """The values of the DeepSpeed JSON that decide memory; by default those of `zero3`. Sizes are in elements."""

    live: int = 2_000_000_000
    bucket: int = 200_000_000
    sub_group: int = 1_000_000_000
    stage: int = 3
    offload_optimizer: bool = False
    offload_weights: bool = False
    secondary: int = 1
    """Ranks that share a second copy of the weights (ZeRO++ hpZ); 1: there is none."""


def kept(shape: Shape, ranks: int, frozen: bool, zero: Zero, width: int = BF16) -> dict[str, int]:
    """What a rank keeps from the first update on.

    Args:
        frozen: whether the reference is beside the policy.
    """
    own = shape.parameters // ranks
    weights = 0 if zero.offload_weights else own if zero.stage == 3 else shape.parameters
    second = shape.parameters // zero.secondary if zero.secondary > 1 else 0
    optimizer = 0 if zero.offload_optimizer else own
    return {
        "weights": width * (weights + second),
        "fp32 master": FP32 * optimizer,
        "fp32 Adam moments": 2 * FP32 * optimizer,
        "gradients, own shard": width * optimizer,
        "reduce bucket": width * zero.bucket,
        "frozen reference": width * own if frozen else 0,
    }


def activations(shape: Shape, tokens: int, checkpointing: Checkpointing, width: int = BF16) -> int:
    """Activations of a micro-batch: those kept for the backward pass, and those of the layer that it is in."""
    norms = 2 * (FP32 + 2 * width) * shape.hidden
    attention = width * (2 * shape.hidden + 3 * shape.queries + 4 * shape.keys)
    layer = norms + attention + width * (4 * shape.hidden + 4 * shape.intermediate)
    gradients = width * (3 * shape.hidden + 2 * shape.intermediate)
    products = width * (2 * shape.hidden + 3 * shape.queries + 2 * shape.keys + 2 * shape.intermediate)
    kept_by_layer = {True: width * shape.hidden, "selective": products, False: layer}[checkpointing]
    recomputed = layer if checkpointing else 0
    return tokens * (shape.layers * kept_by_layer + recomputed + gradients)


def backward(
    shape: Shape,
    ranks: int,
    tokens: int,
    checkpointing: Checkpointing,
    chunk: int,
    zero: Zero,
    width: int = BF16,
) -> dict[str, int]:
    """What a backward pass needs beside what is kept.

    Args:
        chunk: rows of logits in memory at once.
    """
    several = ranks > 1
    # A single rank reduces its gradients once, at the end of the step. Several ranks reduce them layer by layer.
    whole = shape.embedding + shape.layer if several else shape.parameters
    gathered = zero.stage == 3 and (several or zero.offload_weights)
    return {
        "gathered weights": width * min(zero.live, shape.parameters) if gathered else 0,
        "whole gradients": width * whole,
        "head: fp32 gradient and a chunk's product": (FP32 + width) * shape.embedding,
        "head: a chunk of logits and its gradient": (FP32 + width) * chunk * shape.vocabulary,
        "activations": activations(shape, tokens, checkpointing, width),
    }


def update(shape: Shape, ranks: int, zero: Zero, width: int = BF16) -> dict[str, int]:
    """What an update needs beside what is kept: for the norm, or then for a sub-group of parameters.

    The norm converts one gradient after the other to float64. DeepSpeed joins the gradients of a sub-group, which is at
    least one parameter, and then converts them to float32.
    """
    if zero.offload_optimizer:
        return {"norm, or flat gradients of a sub-group": 0}
    own, largest = shape.parameters // ranks, shape.embedding // ranks
    flat = (width + FP32) * min(own, max(zero.sub_group, largest))
    return {"norm, or flat gradients of a sub-group": max(flat, FP64 * largest)}


def peak(
    shape: Shape,
    ranks: int,
    tokens: int,
    checkpointing: Checkpointing,
    frozen: bool,
    chunk: int,
    zero: Zero,
    width: int = BF16,
) -> dict[str, int]:
    """The parts of a rank's peak: what is kept, and the larger of a backward pass and an update.

    CUDA's context and the allocator's fragments, about 3 GB on a GPU, come on top.

    Args:
        frozen: whether the reference is beside the policy.
        chunk: rows of logits in memory at once.
    """
    phases = (backward(shape, ranks, tokens, checkpointing, chunk, zero, width), update(shape, ranks, zero, width))
    return kept(shape, ranks, frozen, zero, width) | max(phases, key=lambda parts: sum(parts.values()))


def scoring(shape: Shape, models: int, tokens: int, chunk: int, width: int = BF16) -> dict[str, int]:
    """A worker that scores batches of so many tokens.

    Args:
        models: how many it holds at a time.
        chunk: rows of logits in memory at once.
    """
    layer = (FP32 + 3 * width) * shape.hidden + width * max(2 * shape.queries + 3 * shape.keys, 2 * shape.intermediate)
    return {
        "weights": models * width * shape.parameters,
        "activations of a layer": tokens * layer,
        "head: a chunk of logits": (FP32 + width) * chunk * shape.vocabulary,
    }


def beside(gpu: bool) -> float:
    """Bytes of a process beside its model and its work.

    On a GPU: its context, NCCL, cuBLAS, and the allocator's fragments. On CPUs: interpreter and libraries.
    """
    return _GPU_BESIDE if gpu else _CPU_BESIDE


def cache_of_token(shape: Shape, width: int = BF16) -> int:
    """Keys and values of one token in all layers."""
    return 2 * width * shape.layers * shape.keys


def sampling(shape: Shape, rows: int, tokens: int, width: int = BF16) -> dict[str, int]:
    """A worker that samples with transformers: `rows` responses at a time, each up to so many tokens with its prompt.

    The cache is copied as it grows, layer by layer. The logits of a step are float32, in four copies: divided by the
    temperature, sorted, as probabilities, and drawn from.
    """
    cache = rows * tokens * cache_of_token(shape, width)
    return {
        "weights": width * shape.parameters,
        "keys and values": cache + cache // shape.layers,
        "logits of a step": 4 * FP32 * rows * shape.vocabulary,
    }

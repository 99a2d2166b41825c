"""The machines of a plan: what a stage runs on, and the rates that its work reaches there."""

from dataclasses import dataclass

from xlr.maths import memory
from xlr.maths.memory import BF16, FP32
from xlr.planning.hardware import GB, Hardware
from xlr.records import DType

_FLOAT32 = 1 / 15
"""Of a GPU's rate in bfloat16, that of products in float32 without TF32: 67 of 989 TFLOP/s on an H100."""


@dataclass(frozen=True)
class Shares:
    """What a kind of work reaches of the rates in the data sheet."""

    training: float
    scoring: float
    products: float
    """Products of a decoding step."""
    bandwidth: float
    step_seconds: float
    """Of a decoding step with transformers, for each layer: what is not arithmetic."""
    start_seconds: float
    """From the start of a stage's processes to their first work, without models."""
    load_rate: float
    """Bytes a second at which a process opens a model."""


# Estimates for an H100 from reading the code against its libraries (benchmarks/README.md), none measured by xlr.
_ON_GPUS = Shares(0.40, 0.46, 0.60, 0.78, 0.0008, 40, 0.2 * GB)
# Measured with a model of 135 million parameters on 2 cores (benchmarks/plan.py).
_ON_CPUS = Shares(0.55, 0.60, 0.40, 0.80, 0.0008, 12, 0.5 * GB)


@dataclass(frozen=True)
class Machines:
    """What the stages of a kind of job run on."""

    hardware: Hardware
    nodes: int = 1
    per_node: int = 1
    """GPUs of a node, or processes on its CPUs."""

    @property
    def count(self) -> int:
        """GPUs, or processes on CPUs."""
        return self.nodes * self.per_node

    @property
    def memory(self) -> float:
        """Bytes that one process may take."""
        return self.hardware.memory if self.hardware.gpu else self.hardware.memory / self.per_node

    def rate_in(self, width: int) -> float:
        """Peak operations a second of one process, with weights of so many bytes."""
        if not self.hardware.gpu:
            return self.hardware.rate / self.per_node
        return self.hardware.rate * (_FLOAT32 if width == FP32 else 1.0)

    @property
    def bandwidth(self) -> float:
        """Bytes a second from memory that one process reaches."""
        own = self.hardware.bandwidth if self.hardware.gpu else self.hardware.bandwidth / self.per_node
        return own * self.shares.bandwidth

    @property
    def exchange(self) -> float:
        """Bytes a second at which all processes get the same weights. In a ring each byte enters each node once."""
        return min(self.hardware.links, self.hardware.network) if self.nodes > 1 else self.hardware.links

    @property
    def shares(self) -> Shares:
        """What work reaches of the peak rates."""
        return _ON_GPUS if self.hardware.gpu else _ON_CPUS

    @property
    def beside(self) -> float:
        """Bytes of a process beside its model and its work."""
        return memory.beside(self.hardware.gpu)

    def width(self, dtype: DType) -> int:
        """Bytes of a weight in a precision of the configuration."""
        return BF16 if dtype == "bfloat16" or (dtype == "auto" and self.hardware.gpu) else FP32

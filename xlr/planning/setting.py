"""What a stage is planned from, and what it takes by the plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xlr.maths.logprobs import CPU_CHUNK_TOKENS, GPU_CHUNK_TOKENS
from xlr.maths.memory import Shape
from xlr.planning.lengths import Lengths
from xlr.planning.machines import Machines
from xlr.records import START, ModelKey
from xlr.settings.config import Config
from xlr.settings.trainconfig import TrainConfig
from xlr.zero import fitting


@dataclass(frozen=True)
class Estimate:
    """What a stage takes."""

    tokens: float = 0.0
    operations: float = 0.0
    seconds: float = 0.0
    """In proportion to its work."""
    fixed: float = 0.0
    """Seconds of starting processes and opening models."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """Bytes of one process at its peak, by component; empty if the stage needs next to none."""
    disk: float = 0.0
    """Bytes that it leaves."""
    scratch: float = 0.0
    """Bytes that it needs beside while it runs."""
    unit: float = 0.0
    """Seconds of the smallest part of its work that is kept when a job ends: a task of a worker, or a training step and
    its checkpoint."""
    note: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Seconds of its work by the stage that does the same; empty if all of it is of one kind."""

    @property
    def duration(self) -> float:
        """Seconds from its start to its end."""
        return self.seconds + self.fixed

    @property
    def peak(self) -> float:
        """Bytes of one process at its peak."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Setting:
    """What a stage is planned from."""

    config: Config
    """The settings of its iteration."""
    iteration: ModelKey
    shape: Shape
    lengths: Mapping[str, Lengths]
    """Of training prompts, by language."""
    held_out: Sequence[Lengths]
    """Of held-out prompts, in each language."""
    preferences: Sequence[Lengths]
    """Of the align stage's preferences: one entry, if there are any."""
    compared: Sequence[Lengths]
    """Of held-out preferences, in each language."""
    machines: Machines
    checked: Sequence[Lengths] = ()
    """Of questions with right answers, in each language."""
    rater: Shape | None = None
    """The sizes of the reward model, if the run has one."""
    turns: Sequence[Lengths] = ()
    """Of questions of several turns: each turn in each language, after the turns before it and their answers."""

    @property
    def training(self) -> TrainConfig:
        """The settings of its training: of the align stage at the start, else of an iteration."""
        own = self.config.align if self.iteration == START else self.config.train
        return fitting.sized(own, self.shape, self.machines.count, self.machines.memory, self.width, self.chunk)

    @property
    def chunk(self) -> int:
        """Rows of logits in memory at once."""
        return GPU_CHUNK_TOKENS if self.machines.hardware.gpu else CPU_CHUNK_TOKENS

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return self.machines.width(self.config.model.dtype)

    @property
    def weights(self) -> int:
        """Bytes of a model."""
        return self.width * self.shape.parameters

"""Types of the JSON that training writes: metrics.jsonl, and facts in the manifests of align, train and reference."""

from typing import TypeAlias

from typing_extensions import TypedDict

from xlr.work.dropped import DroppedCounts

# One line of metrics.jsonl: `step`, and metric -> value. Metrics of one language begin with `lang/{lang}/`.
MetricsRow: TypeAlias = dict[str, float]


class TrainingFacts(TypedDict):
    """Facts of align and train."""

    steps: int
    """Number of optimizer steps."""
    pairs: int
    """Number of pairs trained on."""
    held_out: int
    """Number of pairs held out of training and evaluated."""
    dropped: DroppedCounts
    """Number of pairs left out, by language and reason."""
    world_size: int
    """Number of ranks."""
    warnings: list[str]
    """Warnings, each with its step."""


class ReferenceFacts(TypedDict):
    """Facts of reference."""

    reference: str
    """Folder or hub name of the reference model."""
    dropped: DroppedCounts
    """Number of pairs left out, by language and reason."""

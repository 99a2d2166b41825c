"""Types of the JSON of `xlr benchmark`: results.json, and its facts."""

from typing import TypeAlias

from typing_extensions import TypedDict


class Metric(TypedDict):
    """A metric of a benchmark."""

    value: float
    """Its value, such as the share of right choices, from 0 to 1."""
    error: float | None
    """Its standard error; null if lm-eval gives none."""


class TaskFacts(TypedDict):
    """One task of a benchmark."""

    rows: int
    """Number of questions."""
    version: str
    """lm-eval's version of the task."""
    metrics: dict[str, Metric]
    """Name, such as acc -> value."""


# Facts of benchmark, by task.
BenchmarkFacts: TypeAlias = dict[str, TaskFacts]

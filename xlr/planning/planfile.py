"""The file `plan.json` of a run directory: the last plan that `xlr plan` made of the run."""

from pathlib import Path

from typing_extensions import NotRequired, TypedDict

from xlr.run.files import read_json, write_json

FILE = "plan.json"


class Measured(TypedDict):
    """What a small part of a stage took."""

    work: float
    """Seconds of its work, as a multiple of the plan's."""
    fixed: float
    """Seconds of everything else, such as starting processes and opening models."""
    memory: int
    """Bytes of a process at its peak."""


class Probe(TypedDict):
    """What a probe found; see `xlr.planning.probe`."""

    on: str
    """The hardware."""
    rate: float
    """Operations a second that the plan took for it."""
    stages: dict[str, Measured]
    """By the name of the stage."""
    responses: dict[str, float]
    """Language -> mean tokens of the responses that it sampled."""


class StagePlan(TypedDict):
    """What a stage takes. Times are in seconds, sizes in bytes."""

    stage: str
    processors: str
    """For example 8 h100."""
    tokens: float
    operations: float
    seconds: float
    low: float
    high: float
    memory: dict[str, float]
    """Of one process at its peak, by component."""
    room: float
    """Memory that one process may take."""
    disk: float
    scratch: float
    """Needed beside while it runs."""
    processor_hours: float
    """GPU-hours, or node-hours on CPUs."""
    price: float | None
    note: str
    took: float | None
    """Seconds that a finished stage took."""


class CertificatePlan(TypedDict):
    """What `xlr certify` takes, as it is by default."""

    seconds: float
    fixed: float
    """Of these, seconds of starting workers and opening models."""
    share: float
    """The others, as a share of the iteration that it decides on, without evaluation."""


class Totals(TypedDict):
    """Sums over all stages, one after the other; a finished stage counts with the time that it took."""

    seconds: float
    low: float
    high: float
    processor_hours: float
    price: float | None
    disk_end: float
    disk_peak: float


class Plan(TypedDict):
    """What a run takes, as `xlr plan --json` prints it."""

    model: str
    parameters: int
    languages: dict[str, dict[str, float]]
    """Language -> number of prompts, and mean tokens of prompts, of prompts that responses are scored under, and of
    responses, in the first iteration."""
    response_lengths: str
    """Where the lengths of responses come from."""
    stages: list[StagePlan]
    totals: Totals
    unit: str
    """What processors are counted in: GPU-hours or node-hours."""
    currency: str | None
    problems: list[str]
    """What does not fit, each with a remedy."""
    certificate: NotRequired[CertificatePlan | None]
    """None if it cannot be timed; missing in older files."""
    probe: NotRequired[Probe | None]
    """What corrected the times of stages that no iteration has finished; None, or missing in older files, if nothing
    did."""


def write(run: Path, plan: Plan) -> None:
    """Keep a plan in the run directory."""
    write_json(run / FILE, plan)


def last_probe(run: Path) -> Probe | None:
    """What the last probe of a run found; None without one.

    Raises:
        UserError: see `read`.
    """
    plan = read(run)
    return plan.get("probe") if plan else None


def read(run: Path) -> Plan | None:
    """The plan that a run directory keeps; None if it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return None
    found: Plan = read_json(path, Plan, "delete it; `xlr plan` writes it again")
    return found

"""The decision to end a run before its last iteration, in `RUN/stopped.json`; see `stop_early`."""

from pathlib import Path

from typing_extensions import TypedDict

from xlr.run.files import read_json, remove, sealed, write_json
from xlr.settings.config import Config


class Stopped(TypedDict):
    """The decision."""

    iteration: int
    """The last iteration."""
    why: list[str]
    """What speaks against another one, in sentences."""
    seal: str


def read(run: Path) -> Stopped | None:
    """The decision of a run directory; None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    if not _file(run).is_file():
        return None
    found: Stopped = read_json(_file(run), Stopped, "delete it, and the decision is made again")
    return found


def write(run: Path, iteration: int, why: list[str]) -> None:
    """Record the decision, which later processes of the run read."""
    write_json(_file(run), sealed({"iteration": iteration, "why": why}))


def forget(run: Path) -> None:
    """Take the decision back: what it was made from is made again."""
    remove(_file(run))


def limited(config: Config, run: Path) -> Config:
    """The configuration with the iterations that the run has after the decision.

    Raises:
        UserError: the file of the decision is damaged.
    """
    found = read(run) if config.stop_early else None
    if found is None or found["iteration"] >= config.iterations:
        return config
    return config.model_copy(update={"iterations": found["iteration"]})


def _file(run: Path) -> Path:
    return run / "stopped.json"

"""The decision to end a run before its last iteration, in `RUN/stopped.json`; see `stop_early`."""

from collections.abc import Iterable
from pathlib import Path

from typing_extensions import TypedDict

from xlr.run.files import read_json, sealed, write_json
from xlr.run.manifests import read_manifest
from xlr.settings.config import Config


class Stopped(TypedDict):
    """The decision."""

    iteration: int
    """The last iteration."""
    why: list[str]
    """What speaks against another one, in sentences."""
    evidence: dict[str, str | None]
    """Artefact, relative to the run directory -> digest of its content when the decision was made."""
    seal: str


def read(run: Path) -> Stopped | None:
    """The decision of a run directory.

    None if there is none, if what it was made from has changed since, or if the next iteration was made all the same.

    Raises:
        UserError: the file is damaged.
    """
    if not _file(run).is_file():
        return None
    found: Stopped = read_json(_file(run), Stopped, "delete it, and the decision is made again")
    if overtaken(run, found["iteration"]):
        return None
    return found if all(_digest(run / name) == digest for name, digest in found["evidence"].items()) else None


def write(run: Path, iteration: int, why: list[str], folders: Iterable[Path]) -> None:
    """Record the decision, which later processes of the run read.

    Args:
        folders: the finished artefacts that it was made from.
    """
    evidence = {str(folder.relative_to(run)): _digest(folder) for folder in folders}
    write_json(_file(run), sealed({"iteration": iteration, "why": why, "evidence": evidence}))


def overtaken(run: Path, iteration: int) -> bool:
    """Whether the iteration after this one has trained its model, so that nothing is left to decide."""
    return read_manifest(run / f"iter{iteration + 1}" / "model") is not None


def limited(config: Config, run: Path) -> Config:
    """The configuration with the iterations that the run has after the decision.

    Raises:
        UserError: the file of the decision is damaged.
    """
    found = read(run) if config.stop_early else None
    if found is None or found["iteration"] >= config.iterations:
        return config
    return config.model_copy(update={"iterations": found["iteration"]})


def _digest(folder: Path) -> str | None:
    manifest = read_manifest(folder)
    return manifest["digest"] if manifest else None


def _file(run: Path) -> Path:
    return run / "stopped.json"

"""The variants of a sweep: its file becomes one run for each."""

import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlr import configfile
from xlr.errors import UserError
from xlr.foreign import yamlfiles
from xlr.run.context import Context, read_commits
from xlr.run.files import write_text
from xlr.settings.config import Config
from xlr.settings.sweepconfig import Overrides, SweepConfig

BASE = "base"
FILE = "sweep.yaml"
_OWN = ("run_dir", "reuse")  # the sweep sets them itself


@dataclass(frozen=True)
class Variant:
    """One run of a sweep."""

    name: str
    context: Context
    differs: Overrides
    """The settings in which it differs from the base."""


@dataclass(frozen=True)
class Sweep:
    """A folder of runs; the first is the base, with which the others are compared."""

    folder: Path
    settings: SweepConfig
    variants: list[Variant]

    def record(self) -> None:
        """Write the sweep's file into its folder, from which later commands read it."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text(self.folder / FILE, yamlfiles.dump(self.settings.model_dump(mode="json")))


def open_sweep(source: str | Path) -> Sweep:
    """The sweep that a file describes, or that was recorded in a folder.

    Raises:
        UserError: the file or a variant is wrong.
    """
    path, own = _read(Path(source))
    folder = Path(str(own.sweep_dir))
    variants: list[Variant] = []
    known: dict[str, str] = {}  # configuration -> the variant that has it
    for name, overrides in _named(path, own):
        config = _config(path, own, folder, name, overrides)
        decided = configfile.dump(config.model_copy(update={"run_dir": ""}))
        if decided not in known:
            known[decided] = name
            variants.append(Variant(name, Context(config), overrides))
        elif name in own.variants:
            raise UserError(f"{path}: variants.{name}: has the same settings as {known[decided]}; remove it")
    if len(variants) == 1:
        raise UserError(f"{path}: has no variants; write them under variants or grid")
    for name, commit in (read_commits(Path(own.base)) if os.path.isdir(own.base) else {}).items():
        variants[0].context.commits.setdefault(name, commit)
    for other in variants[1:]:  # all read the same commits of the hub's repositories
        other.context.__dict__["commits"] = variants[0].context.commits
    return Sweep(folder, own, variants)


def recorded_runs(source: str | Path) -> tuple[Path, list[Path]]:
    """The folder of a sweep, and the run directories in it that have begun, the base first.

    Raises:
        UserError: the file is wrong, or nothing has begun.
    """
    path, own = _read(Path(source))
    folder = Path(str(own.sweep_dir))
    found = [folder / name for name, _ in _named(path, own) if (folder / name / "config.yaml").is_file()]
    if not found:
        raise UserError(f"{folder}: no run of this sweep has begun; start it with `xlr sweep run {source}`")
    return folder, found


def _read(source: Path) -> tuple[Path, SweepConfig]:
    """The file of a sweep, and its settings with absolute paths.

    Raises:
        UserError: it is missing or wrong.
    """
    path = source / FILE if source.is_dir() else source
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such sweep; name its file, or the folder that holds its runs")
    own = configfile.load_section(path, SweepConfig)
    base = configfile.base_file(own.base, path, "base")
    folder = configfile.expanded(own.sweep_dir or f"runs/{path.stem}", f"{path}: sweep_dir")
    return path, own.model_copy(update={"base": str(base.absolute()), "sweep_dir": str(folder.absolute())})


def _named(path: Path, own: SweepConfig) -> Iterator[tuple[str, Overrides]]:
    """Name and settings of each variant, the base first.

    Raises:
        UserError: two have the same name, or one sets what the sweep sets.
    """
    for key in (*own.overrides, *own.grid, *itertools.chain(*own.variants.values())):
        if key in _OWN:
            raise UserError(f"{path}: {key}: is set by the sweep; remove it, and set sweep_dir")
    names = {BASE}
    yield BASE, {}
    combinations = (dict(zip(own.grid, values, strict=True)) for values in itertools.product(*own.grid.values()))
    of_grid = ((_name(overrides), overrides) for overrides in combinations if own.grid)
    for name, overrides in (*own.variants.items(), *of_grid):
        if name in names:
            raise UserError(f"{path}: two variants are named {name}; give one another name under variants")
        names.add(name)
        yield name, overrides


def _name(overrides: Overrides) -> str:
    """The values of a combination, as a name of a folder."""
    texts = ("_".join(map(str, value)) if isinstance(value, list) else str(value) for value in overrides.values())
    return "-".join(re.sub(r"[^\w.]+", "_", text, flags=re.ASCII).strip("_.") or "none" for text in texts)[:100]


def _config(path: Path, own: SweepConfig, folder: Path, name: str, overrides: Overrides) -> Config:
    """The configuration of one variant. It shares with the others, and with the base if that is a run.

    Raises:
        UserError: naming the variant.
    """
    shared = [str(folder), *([own.base] if os.path.isdir(own.base) else [])]
    paths: dict[str, Any] = {"run_dir": str(folder / name), "reuse": shared}
    given = own.overrides | overrides | paths
    texts = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items()]
    try:
        found = configfile.load(own.base, texts)
    except UserError as error:
        raise UserError(f"{path}: variant {name}: {error}") from error
    if found.stop_early:
        raise UserError(
            f"{path}: variant {name}: stop_early: variants are compared after the same iterations; set it to false and "
            "iterations to their number"
        )
    return found

"""Identity: what decides the content of an artefact, and of the pieces of an unfinished one.

An artefact is decided by its settings and inputs. Pieces are decided by these, by which rows are in which piece (the
cut), and by the conditions under which they are computed: precision, device and library versions. A finished artefact
records its conditions as facts; they bind its pieces only.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from xlr.errors import UserError
from xlr.run.files import read_json, sealed, sha256, write_json
from xlr.terminal.console import console

PLAN = "plan.json"
CUT = "cut"
DEVICE = "device"
ACCEPTABLE = ("version", DEVICE)
"""The kinds of changed conditions that a user may accept. Another precision or cut is always refused."""


class Plan(TypedDict):
    """The file `plan.json` in a folder of pieces or checkpoints: what decides them."""

    settings: dict[str, Any]
    inputs: dict[str, str | None]
    conditions: dict[str, str | None]
    configuration: dict[str, Any]
    """The whole configuration; names the settings that changed, where only the digest of the cut differs."""
    stamps: list[str]
    """Digests of everything that decides a piece: under the first conditions, then under each accepted change."""
    accept: list[str]
    """Kinds of changed conditions that the next process may accept."""
    accepted: list[str]
    """The changes that were accepted."""
    seal: str


@dataclass(frozen=True)
class Change:
    """A value that differs from the recorded one."""

    key: str
    before: Any
    now: Any

    @property
    def kind(self) -> str:
        """What `--accept` calls it."""
        return "version" if self.key.startswith("version of ") else self.key

    def __str__(self) -> str:
        return f"{self.key} was {self.before!r} and is now {self.now!r}"


def changes(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Change]:
    """The values that differ, by key."""
    keys = sorted({*recorded, *wanted})
    return [Change(key, recorded.get(key), wanted.get(key)) for key in keys if recorded.get(key) != wanted.get(key)]


def as_recorded(value: Any) -> Any:
    """The value as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value))


def read_plan(folder: Path) -> Plan | None:
    """The plan of a folder of pieces; None if it has none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / PLAN
    if not path.is_file():
        return None
    plan: Plan = read_json(path, Plan, f"delete {folder} to start this stage again")
    return plan


def claim(
    folder: Path, conditions: Mapping[str, str | None], configuration: Mapping[str, Any], decided_by: Mapping[str, Any]
) -> list[str]:
    """Create a folder of pieces, or check that the existing one belongs to this artefact and these conditions.

    Args:
        decided_by: the settings and inputs of the artefact, which were compared before.

    Returns:
        The stamps that pieces may have; the last is that of new pieces.

    Raises:
        UserError: the folder holds pieces made under other conditions. The message names the first difference.
    """
    wanted = as_recorded({**decided_by, "conditions": conditions, "configuration": configuration})
    stamp = sha256(json.dumps([wanted[part] for part in ("settings", "inputs", "conditions")], sort_keys=True))
    plan = read_plan(folder)
    if plan is None:
        folder.mkdir(parents=True, exist_ok=True)
        return _write(folder, {**wanted, "stamps": [stamp], "accept": [], "accepted": []})["stamps"]
    changed = changes(plan["conditions"], wanted["conditions"])
    _require_accepted(folder, plan, changed, wanted["configuration"])
    if changed or plan["accept"]:
        for change in changed:
            console.print(f"  {folder.name}: continued although {change}")
        stamps = [own for own in plan["stamps"] if own != stamp] + [stamp]
        accepted = [*plan["accepted"], *map(str, changed)]
        update = {"conditions": wanted["conditions"], "stamps": stamps, "accept": [], "accepted": accepted}
        plan = _write(folder, {**plan, **update})
    return plan["stamps"]


def _write(folder: Path, plan: Mapping[str, Any]) -> Plan:
    whole: Any = sealed({key: value for key, value in plan.items() if key != "seal"})
    write_json(folder / PLAN, whole)
    written: Plan = whole
    return written


def _require_accepted(folder: Path, plan: Plan, changed: list[Change], configuration: Mapping[str, Any]) -> None:
    refused = [change for change in changed if change.kind not in plan["accept"]]
    if not refused:
        return
    change, start_again = refused[0], f"delete {folder} to start this stage again"
    if change.key == CUT:
        # A digest does not help the user, so name the settings that changed.
        named = ", ".join(map(str, changes(plan["configuration"], configuration))) or "other rows"
        reason = f"the work is divided into other batches ({named})"
    else:
        reason = str(change)
    remedy = f"Set it back, use another run_dir, or {start_again}"
    if {other.kind for other in refused} <= {*ACCEPTABLE}:
        kinds = ",".join(sorted({other.kind for other in refused}))
        remedy = f"Continue under it with --accept {kinds}, or {start_again}"
    raise UserError(f"{folder}: its finished pieces cannot be used: {reason}. {remedy}")


def accept(folder: Path, kinds: Collection[str]) -> None:
    """Let the next process continue a folder of pieces under changed conditions of these kinds."""
    plan = read_plan(folder)
    if plan is not None:
        _write(folder, {**plan, "accept": sorted(kinds)})


def plans(folders: Iterator[Path]) -> Iterator[tuple[str, Plan]]:
    """Name and plan of each folder of pieces that has one."""
    for folder in folders:
        plan = read_plan(folder)
        if plan is not None:
            yield folder.name, plan

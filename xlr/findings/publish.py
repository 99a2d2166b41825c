"""The numbers of report.json for experiment trackers, under flat names such as `eval/es/win_rate`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from xlr.errors import UserError
from xlr.findings.found import Found, ModelFound, models
from xlr.run.files import read_json
from xlr.settings.trainconfig import Tracker
from xlr.tracking import trackers


def known_trackers(names: Sequence[str]) -> Sequence[str]:
    """The names, if all of them are trackers.

    Raises:
        UserError: one is not a tracker.
    """
    for name in names:
        if name not in get_args(Tracker):
            raise UserError(f"--to {name}: no such tracker; there are {', '.join(get_args(Tracker))}")
    return names


def publish(folder: Path, report_to: Sequence[str]) -> None:
    """Send the numbers of a run's report.json to trackers.

    The iterations are the steps of one tracked run; every model of evaluate.models is a tracked run of its own.

    Args:
        folder: the run directory.

    Raises:
        UserError: a tracker is not installed or refuses.
    """
    found: Found = read_json(folder / "report.json", dict[str, Any], "run `xlr report` again")
    numbers = {model: dict(flatten(own, found["evaluated"])) for model, own in models(found)}
    steps = {model: own for model, own in numbers.items() if own and isinstance(model, int)}
    trackers.publish(folder, report_to, f"{folder.name} report", found["settings"], steps)
    for model, own in numbers.items():
        if own and isinstance(model, str):
            trackers.publish(
                folder / "models" / model, report_to, f"{folder.name} {model}", found["settings"], {0: own}
            )


def flatten(model: ModelFound, langs: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Name and value of every number in the evaluation and the win rates of a model, in the units of report.json.

    Args:
        langs: languages of the answers.
    """
    if evaluation := model["evaluation"]:
        by_lang: Mapping[str, Mapping[str, Any]] = evaluation["languages"]
        yield from _numbers("eval", by_lang)
        for key in next(iter(by_lang.values()), {}):
            values = [own[key] for own in by_lang.values() if isinstance(own[key], int | float)]
            if values:
                yield f"eval/average/{key}", mean(values)
        yield from _numbers("eval/preferences", evaluation.get("preferences"))
    if judgements := model["judgements"]:
        yield from _numbers("eval", judgements.get("languages"))
        yield from _numbers("eval/average", judgements.get("average"))
        overall = {key: value for key, value in judgements.items() if key not in ("languages", "average")}
        yield from _numbers(f"eval/{langs[0]}" if len(langs) == 1 else "eval/all", overall)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers inside a value; a list is an interval."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, list):
        yield from _numbers(name, dict(zip(("low", "high"), value, strict=True)))
    elif isinstance(value, int | float):
        yield name, float(value)

"""The report's numbers by flat names, for experiment trackers: `eval/{lang}/win_rate`, by iteration or model."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any, get_args

from xlr.config import Tracker
from xlr.errors import UserError
from xlr.run.context import Context
from xlr.run.files import read_json
from xlr.training import trackers


def known_trackers(names: Sequence[str]) -> Sequence[str]:
    """The names, all of which are trackers.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if name not in get_args(Tracker):
            raise UserError(f"--to {name}: no such tracker; there are {', '.join(get_args(Tracker))}")
    return names


def publish(context: Context, report_to: Sequence[str]) -> None:
    """Give what RUN/report.json holds to trackers: iterations as steps of one run, other models as their own runs.

    Raises:
        UserError: a tracker is not installed or refuses.
    """
    run = context.run.path
    found = read_json(run / "report.json")
    numbers = {model: dict(flatten(entry, found["evaluated"])) for model, entry in found["iterations"].items()}
    rows = {int(model): own for model, own in numbers.items() if own and model.isdigit()}
    trackers.publish(run, report_to, f"{run.name} report", found["settings"], rows)
    for model, own in numbers.items():
        if own and not model.isdigit():
            trackers.publish(run / "models" / model, report_to, f"{run.name} {model}", found["settings"], {0: own})


def flatten(entry: Mapping[str, Any], langs: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Name and value of every number that evaluation and judge found of one model; shares and percents stay so.

    Args:
        langs: the languages that answers are in.
    """
    evaluation, judgements = entry["evaluation"] or {}, entry.get("judgements") or {}
    by_lang = evaluation.get("languages", {})
    yield from _numbers("eval", by_lang)
    for key, value in next(iter(by_lang.values()), {}).items():
        if isinstance(value, int | float):
            yield f"eval/average/{key}", mean(own[key] for own in by_lang.values())
    yield from _numbers("eval/preferences", evaluation.get("preferences"))
    yield from _numbers("eval", judgements.get("languages"))
    yield from _numbers("eval/average", judgements.get("average"))
    whole = {key: value for key, value in judgements.items() if key not in ("languages", "average")}
    yield from _numbers(f"eval/{langs[0]}" if len(langs) == 1 else "eval/all", whole)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, list):
        yield from _numbers(name, dict(zip(("low", "high"), value, strict=True)))
    elif isinstance(value, int | float):
        yield name, float(value)

"""The tables of the report: answer quality, training data, costs, settings.

With several runs each row names its run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple, get_args

from xlr.evaluation.facts import RateDifference, Rates
from xlr.findings.found import (
    AVERAGE,
    Found,
    Processors,
    by_judge,
    by_language,
    label,
    model_key,
    models,
    preferences_of,
    stages,
)
from xlr.findings.numbers import interval, number
from xlr.maths.shares import share_interval
from xlr.report import elsewhere
from xlr.report.elsewhere import Row
from xlr.rewarding.facts import RewardFacts
from xlr.settings.pairconfig import Flaw
from xlr.terminal.console import Column, Table, duration, number_columns, size, text_columns
from xlr.work.dropped import DroppedCounts

_FLAWS = get_args(Flaw)


class _Design(NamedTuple):
    """A table of the report: its leading text columns identify a row, and `rows` makes the rows of one run."""

    title: str
    columns: Sequence[Column]
    rows: Callable[[Found], Iterator[Row]]


def quality(runs: Sequence[Found]) -> list[Table]:
    """How good the answers are."""
    rates = ("win rate", "95 % interval", "length-controlled", "95 % interval")
    answers = ("answers", "complete %", "in language %", "characters", "reward", "beats π0 %", "95 % interval")
    return _tables(
        runs,
        _Design(
            "Judged answers, in %",
            (*text_columns("language", "model", "judge"), *number_columns(*rates, "wins", "ties", "losses", "failed")),
            _judged,
        ),
        _Design(
            "Change between iterations, in percentage points",
            (*text_columns("language", "models"), *number_columns(*rates)),
            _changes,
        ),
        _Design(
            "Position bias of the judge",
            (
                *text_columns("model", "judge"),
                *number_columns("judged in both orders", "second answer wins %", "both orders agree %"),
            ),
            _position_bias,
        ),
        _Design(
            "Agreement of the judges: how often another judge prefers the same answer",
            (
                *text_columns("model", "judge", "other judge"),
                *number_columns("both prefer one", "the same one %", "95 % interval"),
            ),
            _agreement,
        ),
        _Design(
            "Held-out prompts: one answer each",
            (*text_columns("language", "model"), *number_columns(*answers), *text_columns("dropped")),
            _held_out,
        ),
        _Design(
            "Answers to questions of several turns, rated from 1 to 10",
            (
                *text_columns("language", "model"),
                *number_columns("questions", "rating", "95 % interval", "by turn", "not rated"),
                *number_columns("change from π0", "95 % interval"),
            ),
            elsewhere.ratings,
        ),
        _Design(
            "Benchmarks of multiple choice: what alignment costs or brings",
            (
                *text_columns("task", "metric", "model"),
                *number_columns("questions", "value %", "change from π0", "95 % interval"),
            ),
            elsewhere.benchmarks,
        ),
        _Design(
            "Held-out preferences: implicit reward log π − log π_I",
            (
                *text_columns("language", "instruction", "model"),
                *number_columns("pairs", "accuracy %", "95 % interval", "margin", "95 % interval", "alpha"),
                *number_columns("length-controlled %", "95 % interval", "longer is better %"),
            ),
            _preferences,
        ),
    )


def data(runs: Sequence[Found]) -> list[Table]:
    """What the models were trained on."""
    flaws = (flaw.replace("_", " ") for flaw in _FLAWS)
    scores = ("scored", "reward", "characters", "in language", *flaws)
    pairs = ("pairs", "alpha", "length gap", "chosen characters", "rejected characters")
    return _tables(
        runs,
        _Design(
            "Sampled responses, and the share with each flaw, in %",
            (*text_columns("iteration", "language"), *number_columns(*scores), *text_columns("dropped")),
            _responses,
        ),
        _Design(
            "Preference pairs",
            (*text_columns("iteration", "language"), *number_columns(*pairs), *text_columns("filtered", "dropped")),
            _pairs,
        ),
        _Design(
            "Training",
            (
                *text_columns("model"),
                *number_columns("pairs", "steps", "held out"),
                *text_columns("warnings", "dropped"),
            ),
            _training,
        ),
    )


def costs(runs: Sequence[Found]) -> list[Table]:
    """Time, processors, memory, tokens and price of each stage, beside what was planned."""
    columns = (
        *text_columns("iteration", "stage"),
        *number_columns("time", "planned"),
        *text_columns("processors"),
        *number_columns("memory of a process", "planned memory", "GPU-hours", "CPU-hours", "tokens", "price"),
    )
    return _tables(runs, _Design("Costs", columns, _costs))


def facts(runs: Sequence[Found]) -> list[Table]:
    """How the runs were made: settings that differ, all settings, libraries."""
    values = ("value",) if len(runs) == 1 else tuple(f"value in {found['name']}" for found in runs)
    keys = dict.fromkeys(key for found in runs for key in found["settings"])
    rows = [(key, *(_setting(found["settings"].get(key, "")) for found in runs)) for key in keys]
    libraries = dict.fromkeys(key for found in runs for key in found["versions"])
    versions = [(key, *(", ".join(found["versions"].get(key, ())) for found in runs)) for key in libraries]
    differ = [row for row in rows if len(set(row[1:])) > 1]
    tables = [
        Table("Settings that differ between the runs", text_columns("setting", *values), differ),
        Table("Settings that affect the results", text_columns("setting", *values), rows),
        Table("Libraries", text_columns("library", *values), versions),
    ]
    return [table for table in tables if table.rows]


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _tables(runs: Sequence[Found], *designs: _Design) -> list[Table]:
    """The tables that have rows."""
    return [table for table in (_table(runs, design) for design in designs) if table.rows]


def _table(runs: Sequence[Found], design: _Design) -> Table:
    """One table over all runs, without the columns that are empty in every row; rows of the same key are adjacent."""
    columns = design.columns
    keys = next(number for number, column in enumerate(columns) if column.numeric)
    rows = [
        (*row[:keys], found["name"] if len(runs) > 1 else "", *row[keys:])
        for found in runs
        for row in design.rows(found)
    ]
    order = list(dict.fromkeys(row[:keys] for row in rows))
    rows.sort(key=lambda row: order.index(row[:keys]))
    kept = [any(cells) for cells in zip(*rows, strict=True)]
    shown = compress((*columns[:keys], *text_columns("run"), *columns[keys:]), kept)
    return Table(design.title, tuple(shown), [tuple(compress(row, kept)) for row in rows])


def _judged(found: Found) -> Iterator[Row]:
    judged = [(key, judge, dict(by_language(found, figures))) for key, judge, figures in by_judge(found)]
    for lang in (*found["evaluated"], AVERAGE):
        for key, judge, rates in judged:
            if own := rates.get(lang):
                yield (
                    lang,
                    label(key),
                    judge,
                    number(own["win_rate"]),
                    interval(own["win_rate_interval"]),
                    *_length_controlled(own),
                    *(str(own.get(count, "")) for count in ("wins", "ties", "losses", "failed")),
                )


def _length_controlled(own: Rates) -> tuple[str, str]:
    """Empty where there are too few judgements: the regression then returns 50 % and no error."""
    if not own["length_controlled_standard_error"]:
        return "", ""
    return number(own["length_controlled_win_rate"]), interval(own["length_controlled_interval"])


def _changes(found: Found) -> Iterator[Row]:
    for lang in (*found["evaluated"], AVERAGE):
        for change in found["changes"]:
            if own := dict(by_language(found, change["difference"])).get(lang):
                plain, controlled = own["win_rate"], own["length_controlled_win_rate"]
                first, last = (label(model_key(change[end])) for end in ("from", "to"))
                shown = _difference(controlled) if controlled["standard_error"] else ("", "")
                yield (lang, f"{first} → {last}", *_difference(plain), *shown)


def _difference(rate: RateDifference) -> tuple[str, str]:
    return number(rate["value"], "+.1f"), interval([rate["low"], rate["high"]], "+.1f")


def _position_bias(found: Found) -> Iterator[Row]:
    for key, judge, figures in by_judge(found):
        if bias := figures["position_bias"]:
            shares = (number(bias["second_place_win_rate"]), number(bias["agreement"]))
            yield (label(key), judge, str(bias["instructions"]), *shares)


def _agreement(found: Found) -> Iterator[Row]:
    for key, model in models(found):
        for other in model["other_judgements"]:
            if (own := model["judgements"]) and (shared := other["agreement"]):
                shares = (number(shared["agreement"]), interval(shared["interval"]))
                yield (label(key), own["judge"], other["judge"], str(shared["judgements"]), *shares)


def _held_out(found: Found) -> Iterator[Row]:
    for lang in found["evaluated"]:
        for key, model in models(found):
            if (evaluation := model["evaluation"]) and (own := evaluation["languages"].get(lang)):
                wins, chance = _share(own["reward_wins"], max(own["rows"], 1))
                yield (
                    lang,
                    label(key),
                    number(own["rows"], ","),
                    number(own["complete"], scale=100),
                    _in_language(own),
                    number(own["chars_mean"], ".0f"),
                    number(own["reward_mean"], ".2f"),
                    wins,
                    "" if key == 0 else chance,
                    _dropped(evaluation["dropped"], lang),
                )


def _preferences(found: Found) -> Iterator[Row]:
    for key, model in models(found):
        for lang, modes in preferences_of(model).items():
            for mode, own in modes.items():
                yield (
                    lang,
                    mode,
                    label(key),
                    number(own["pairs"], ","),
                    *_share(own["accuracy"], own["pairs"]),
                    number(own["margin"], ".2f"),
                    interval(own["margin_interval"], ".2f") if "margin_interval" in own else "",
                    number(own["alpha"], ".3f"),
                    *_share(own["length_controlled_accuracy"], own["pairs"]),
                    number(own["longer_accuracy"], scale=100),
                )
                for name, part in own.get("categories", {}).items():
                    figures = _share(part["accuracy"], part["pairs"])
                    yield (lang, f"{mode}, {name}", label(key), number(part["pairs"], ","), *figures, *[""] * 6)


def _share(value: float, count: int) -> tuple[str, str]:
    """A share in percent, and its 95 % interval."""
    low, high = share_interval(value, count)
    return number(value, scale=100), interval([100 * low, 100 * high])


def _responses(found: Found) -> Iterator[Row]:
    for key, model in models(found):
        if stage := model["stages"].get("score"):
            for lang, own in stage["facts"]["languages"].items():
                flaws = (_flaw(own, flaw) for flaw in _FLAWS)
                yield (
                    str(key),
                    lang,
                    number(own["rows"], ","),
                    f"{own['reward_mean']:.2f} ± {own['reward_std']:.2f}",
                    number(own["chars_mean"], ".0f"),
                    _in_language(own),
                    *flaws,
                    _dropped(stage["facts"]["dropped"], lang),
                )


def _in_language(own: RewardFacts) -> str:
    return "not detected" if own["in_language"] is None else number(own["in_language"], scale=100)


def _flaw(own: RewardFacts, flaw: Flaw) -> str:
    """The share of responses with a flaw; a dash where it cannot be seen, because the language is not detected."""
    if flaw == "wrong_language" and own["in_language"] is None:
        return "–"
    return number(own["flaws"].get(flaw, 0) / max(own["rows"], 1), scale=100)


def _pairs(found: Found) -> Iterator[Row]:
    for key, model in models(found):
        if stage := model["stages"].get("pair"):
            for lang, own in stage["facts"].items():
                yield (
                    str(key),
                    lang,
                    number(own["pairs"], ","),
                    number(own["alpha"], ".3f"),
                    number(own["length_gap"]),
                    number(own["chosen_chars"], ".0f"),
                    number(own["rejected_chars"], ".0f"),
                    _counts(own["filtered"]),
                    _counts(own["dropped"]),
                )


def _training(found: Found) -> Iterator[Row]:
    for key, model in models(found):
        if stage := model["stages"].get("align") or model["stages"].get("train"):
            own = stage["facts"]
            counts = (own["pairs"], own["steps"], own["held_out"])
            by_language = {
                f"{lang} {reason}": count for lang in own["dropped"] for reason, count in own["dropped"][lang].items()
            }
            yield (
                label(key),
                *(number(count, ",") for count in counts),
                "; ".join(own["warnings"]),
                _counts(by_language),
            )


def _dropped(dropped: DroppedCounts, lang: str) -> str:
    return _counts(dropped.get(lang, {}))


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _costs(found: Found) -> Iterator[Row]:
    total = 0.0
    total_hours: Processors = {"cpus": 0.0, "gpus": 0.0}
    for key, model in models(found):
        for name, stage in stages(model).items():
            seconds, processors, planned = stage["seconds"], stage["processors"], stage["planned"]
            hours: Processors = {
                "cpus": processors["cpus"] * seconds / 3600,
                "gpus": processors["gpus"] * seconds / 3600,
            }
            total += seconds
            total_hours["cpus"] += hours["cpus"]
            total_hours["gpus"] += hours["gpus"]
            yield (
                str(key),
                name,
                duration(seconds),
                duration(planned["seconds"]) if planned and planned["seconds"] else "",
                _processors(processors),
                size(stage["memory"]) if stage["memory"] else "",
                size(int(planned["memory"])) if planned and planned["memory"] else "",
                *_hours(hours),
                ", ".join(f"{count:,} {what}" for what, count in stage["tokens"].items() if count),
                number(stage["facts"]["cost"], ".2f") if name in ("judge", "rate") else "",
            )
    if total:
        yield ("all", "", duration(total), "", "", "", "", *_hours(total_hours), "", "")


def _processors(counts: Processors) -> str:
    texts = (
        f"{count:g} {kind}{'s' * (count != 1)}"
        for kind, count in (("CPU", counts["cpus"]), ("GPU", counts["gpus"]))
        if count
    )
    return ", ".join(texts)


def _hours(hours: Processors) -> tuple[str, str]:
    return _hour(hours["gpus"]), _hour(hours["cpus"])


def _hour(hours: float) -> str:
    return f"{hours:,.2f}" if hours >= 0.01 else "< 0.01" * (hours > 0)

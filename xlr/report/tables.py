"""Tables of plain text cells, and how they look on a terminal and in Markdown; and the report's.

`found` is what `report.collect` found of one run; with several runs each row names its own.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import compress
from typing import Any, TypeAlias, get_args

import rich.table

from xlr.config import Flaw
from xlr.progress import duration

Found: TypeAlias = Mapping[str, Any]
Row: TypeAlias = tuple[str, ...]

_FLAWS = get_args(Flaw)
_LABELS = ("language", "model", "models", "iteration", "stage")
_OF_REPORT = ("run", "warnings", "filtered", "dropped", "on", "setting", "value", "library")
_OF_INSPECTION = ("mode", "modes", "lang", "flaws", "response", "translation")
_TEXTS = (*_LABELS, *_OF_REPORT, *_OF_INSPECTION)
AVERAGE = "average"


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; numbers stand to the right."""

    title: str
    columns: Row
    rows: Sequence[Row]

    @property
    def texts(self) -> list[bool]:
        """Which columns are no numbers."""
        return [column in _TEXTS or column.startswith("value") for column in self.columns]

    def on_terminal(self) -> rich.table.Table:
        """For rich's console."""
        shown = rich.table.Table(title=self.title, title_justify="left")
        for column, text in zip(self.columns, self.texts, strict=True):
            shown.add_column(column, justify="left" if text else "right", no_wrap=not shown.columns)
        for row in self.rows:
            shown.add_row(*map(rich.markup.escape, row))
        return shown

    def in_markdown(self) -> str:
        """For GitHub and other readers of pipe tables."""
        rules = ["---" if text else "---:" for text in self.texts]
        lines = [self.columns, rules, *([plain(cell) for cell in row] for row in self.rows)]
        return f"### {plain(self.title)}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plain(cell: str) -> str:
    """Text that Markdown takes for nothing else."""
    for character in "\\`*_[]<>|":
        cell = cell.replace(character, "\\" + character)
    return " ".join(cell.split())


def label(model: str) -> str:
    """How a model is called: `π1` for what iteration 1 made, else its own name."""
    return f"π{model}" if model.isdigit() else model


def number(value: float | None, form: str = ".1f", scale: int = 1) -> str:
    """A number as it is shown, nothing where there is none."""
    return "" if value is None else format(value * scale, form)


def interval(low: float, high: float, form: str = ".1f") -> str:
    """Its two ends."""
    return f"{low:{form}} … {high:{form}}"


def share_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` things. Source: Wilson 1927, the score interval."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def of_languages(found: Found, figures: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Win rates or their differences by language, then their average; where answers are in one, it stands alone."""
    if "languages" not in figures:
        return [(found["evaluated"][0], figures)]
    own = figures["languages"]
    return [*((lang, own[lang]) for lang in found["evaluated"] if lang in own), (AVERAGE, figures[AVERAGE])]


def quality(runs: Sequence[Found]) -> list[Table]:
    """How good the answers are."""
    return _filled(
        runs,
        (
            "Judged answers, in %",
            ("language", "model", "win rate", "95 %", "length-controlled", "95 %", "wins", "ties", "losses", "failed"),
            _judged,
        ),
        (
            "Change from one iteration to another, in points",
            ("language", "models", "win rate", "95 %", "length-controlled", "95 %"),
            _changes,
        ),
        (
            "Whether the judge prefers a place",
            ("model", "asked in both orders", "second place wins %", "both orders agree %"),
            _position_bias,
        ),
        (
            "Held-out prompts: one answer each",
            (
                "language",
                "model",
                "answers",
                "complete %",
                "in language %",
                "characters",
                "reward",
                "beats π0 %",
                "95 %",
                "dropped",
            ),
            _held_out,
        ),
        (
            "Held-out preferences: implicit reward log π − log π_I",
            ("model", "pairs", "accuracy %", "margin"),
            _preferences,
        ),
    )


def data(runs: Sequence[Found]) -> list[Table]:
    """What the models were trained on."""
    return _filled(
        runs,
        (
            "Sampled responses, and the share of them with each flaw in %",
            (
                "iteration",
                "language",
                "scored",
                "reward",
                "characters",
                "in language",
                *(flaw.replace("_", " ") for flaw in _FLAWS),
                "dropped",
            ),
            _responses,
        ),
        (
            "Preference pairs",
            (
                "iteration",
                "language",
                "pairs",
                "alpha",
                "length gap",
                "chosen chars",
                "rejected chars",
                "filtered",
                "dropped",
            ),
            _pairs,
        ),
        ("Training", ("model", "pairs", "steps", "held out", "warnings", "dropped"), _training),
    )


def costs(runs: Sequence[Found]) -> list[Table]:
    """What the run took."""
    columns = ("iteration", "stage", "time", "on", "GPU-hours", "CPU-hours", "tokens", "price")
    return _filled(runs, ("Costs", columns, _costs))


def facts(runs: Sequence[Found]) -> list[Table]:
    """How the runs were made: settings that differ first, then all, then libraries."""
    names = [found["name"] for found in runs]
    values = ("value",) if len(runs) == 1 else tuple(f"value in {name}" for name in names)
    keys = dict.fromkeys(key for found in runs for key in found["settings"])
    rows = [(key, *(_setting(found["settings"].get(key, "")) for found in runs)) for key in keys]
    libraries = dict.fromkeys(key for found in runs for key in found["versions"])
    versions = [(key, *(", ".join(found["versions"].get(key, ())) for found in runs)) for key in libraries]
    tables = [
        Table("What differs between the runs", ("setting", *values), [row for row in rows if len(set(row[1:])) > 1]),
        Table("Settings that decide the result", ("setting", *values), rows),
        Table("Libraries", ("library", *values), versions),
    ]
    return [table for table in tables if table.rows]


def summary(found: Found) -> list[tuple[str, str]]:
    """The run in a few facts: name and value."""
    own = found["settings"]
    aligned = _base_name(own["model.aligned"] or "") or "π_I aligned on English preferences by this run"
    control = "α of each language makes chosen and rejected equally long: r − α · characters"
    facts = [
        ("Languages", _languages(found, "languages")),
        *([("Answers in", _languages(found, "evaluated"))] * (found["evaluated"] != found["languages"])),
        ("π_I", _base_name(own["model.initial"])),
        ("π0", aligned),
        ("Reward r", reward_formula(found)),
        ("Length control", control if own["pair.length_control"] else "none"),
        (
            "Loss",
            f"DPO ({own['train.loss_type']}, β = {own['train.beta']:g}) + {own['train.nll_weight']:g} · NLL of chosen; "
            f"reference: {'the model the iteration starts from' if own['train.reference'] == 'start' else 'π_I'}",
        ),
        (
            "Sampling",
            f"{own['generate.num_samples']} responses a prompt, temperature {own['generate.temperature']:g}, "
            f"top_p {own['generate.top_p']:g}, at most {own['generate.max_new_tokens']:,} tokens",
        ),
        ("Seed", str(own["seed"])),
    ]
    judges = dict.fromkeys(
        f"{figures['judge']}, against {figures['baseline']}, {figures['length_control']}"
        for _, figures in _models(found, "judgements")
    )
    facts += [("Judge", "; ".join(judges))] * bool(judges)
    if found["finished"]:
        facts.append(("Last stage finished", f"{datetime.fromisoformat(found['finished']):%Y-%m-%d %H:%M} UTC"))
    return facts


def _languages(found: Found, key: str) -> str:
    return ", ".join(f"{found['names'][lang]} ({lang})" for lang in found[key])


def _base_name(model: str) -> str:
    """A hub name, or the last part of a path; the settings have it all."""
    return model.rstrip("/").split("/")[-1] if model.startswith("/") else model


def reward_formula(found: Found) -> str:
    """The implicit reward as this run computes it."""
    under, meaning = {
        "crosslingual": ("y | G(x)", "G(x): the instruction in English, with the request to answer in x's language"),
        "multilingual": ("y | x", "x: the instruction in its own language"),
        "translate": ("y′ | x′", "y′ and x′: response and instruction in English"),
    }[found["settings"]["score.reward"]]
    reference = "π_I" if found["settings"]["score.reference"] == "initial" else "πᵗ⁻²"
    return f"r = log πᵗ⁻¹({under}) − log {reference}({under}), in nats; {meaning}"


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _filled(runs: Sequence[Found], *tables: tuple[str, Row, Callable[[Found], Iterator[Row]]]) -> list[Table]:
    """The tables that have rows, without columns that are empty in all of them; runs stand below one another."""
    made = []
    for title, columns, rows_of in tables:
        labels = next(number for number, column in enumerate(columns) if column not in _LABELS)
        rows = [
            (*row[:labels], found["name"] if len(runs) > 1 else "", *row[labels:])
            for found in runs
            for row in rows_of(found)
        ]
        if rows:
            order = list(dict.fromkeys(row[:labels] for row in rows))
            rows.sort(key=lambda row: order.index(row[:labels]))
            kept = [any(cells) for cells in zip(*rows, strict=True)]
            shown = compress((*columns[:labels], "run", *columns[labels:]), kept)
            made.append(Table(title, tuple(shown), [tuple(compress(row, kept)) for row in rows]))
    return made


def _models(found: Found, key: str) -> Iterator[tuple[str, Any]]:
    for model, entry in found["iterations"].items():
        if entry[key]:
            yield model, entry[key]


def _stages(found: Found, stage: str) -> Iterator[tuple[str, Any]]:
    for model, entry in found["iterations"].items():
        if stage in entry["stages"]:
            yield model, entry["stages"][stage]


def _judged(found: Found) -> Iterator[Row]:
    by_model = {model: dict(of_languages(found, figures)) for model, figures in _models(found, "judgements")}
    for lang in (*found["evaluated"], AVERAGE):
        for model, figures in by_model.items():
            if own := figures.get(lang):
                yield (
                    lang,
                    label(model),
                    number(own["win_rate"]),
                    interval(*own["win_rate_interval"]),
                    number(own["length_controlled_win_rate"]),
                    interval(*own["length_controlled_interval"]),
                    *(str(own.get(name, "")) for name in ("wins", "ties", "losses", "failed")),
                )


def _changes(found: Found) -> Iterator[Row]:
    for lang in (*found["evaluated"], AVERAGE):
        for change in found["changes"]:
            if own := dict(of_languages(found, change["difference"])).get(lang):
                cells = [
                    (number(rate["value"], "+.1f"), interval(rate["low"], rate["high"], "+.1f"))
                    for rate in (own["win_rate"], own["length_controlled_win_rate"])
                ]
                yield (lang, f"{label(change['from'])} → {label(change['to'])}", *cells[0], *cells[1])


def _position_bias(found: Found) -> Iterator[Row]:
    for model, figures in _models(found, "judgements"):
        if bias := figures["position_bias"]:
            shares = (number(bias["second_place_win_rate"]), number(bias["agreement"]))
            yield (label(model), str(bias["instructions"]), *shares)


def _held_out(found: Found) -> Iterator[Row]:
    for lang in found["evaluated"]:
        for model, evaluation in _models(found, "evaluation"):
            if own := evaluation["languages"].get(lang):
                low, high = share_interval(own["reward_wins"], max(own["rows"], 1))
                yield (
                    lang,
                    label(model),
                    number(own["rows"], ","),
                    number(own["complete"], scale=100),
                    number(own["in_language"], scale=100),
                    number(own["chars_mean"], ".0f"),
                    number(own["reward_mean"], ".2f"),
                    number(own["reward_wins"], scale=100),
                    "" if model == "0" else interval(100 * low, 100 * high),
                    _dropped(evaluation, lang),
                )


def _preferences(found: Found) -> Iterator[Row]:
    for model, evaluation in _models(found, "evaluation"):
        if own := evaluation.get("preferences"):
            yield (
                label(model),
                number(own["pairs"], ","),
                number(own["accuracy"], scale=100),
                number(own["margin"], ".2f"),
            )


def _responses(found: Found) -> Iterator[Row]:
    for iteration, stage in _stages(found, "score"):
        for lang, own in stage["facts"]["languages"].items():
            flaws = (number(own["flaws"].get(flaw, 0) / max(own["rows"], 1), scale=100) for flaw in _FLAWS)
            yield (
                iteration,
                lang,
                number(own["rows"], ","),
                f"{own['reward_mean']:.2f} ± {own['reward_std']:.2f}",
                number(own["chars_mean"], ".0f"),
                number(own["in_language"], scale=100),
                *flaws,
                _dropped(stage["facts"], lang),
            )


def _pairs(found: Found) -> Iterator[Row]:
    for iteration, stage in _stages(found, "pair"):
        for lang, own in stage["facts"].items():
            yield (
                iteration,
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
    for name in ("align", "train"):
        for model, stage in _stages(found, name):
            own = stage["facts"]
            counts = (own["pairs"], own["steps"], own["held_out"])
            yield (
                label(model),
                *(number(count, ",") for count in counts),
                "; ".join(own["warnings"]),
                _counts(own["dropped"]),
            )


def _dropped(facts: Mapping[str, Any], lang: str) -> str:
    """What scoring left out of a language, which its reasons begin with."""
    own = {
        reason.partition(" ")[2]: count for reason, count in facts["dropped"].items() if reason.startswith(f"{lang} ")
    }
    return _counts(own)


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _costs(found: Found) -> Iterator[Row]:
    seconds, hours = 0.0, {"gpus": 0.0, "cpus": 0.0}
    for model, entry in found["iterations"].items():
        for name, stage in entry["stages"].items():
            seconds += stage["seconds"]
            own = {kind: count * stage["seconds"] / 3600 for kind, count in (stage["processors"] or {}).items()}
            for kind in own:
                hours[kind] += own[kind]
            yield (
                model,
                name,
                duration(stage["seconds"]),
                _processors(stage["processors"]),
                *_hours(own),
                _tokens(stage["tokens"]),
                number(stage["facts"].get("cost"), ".2f"),
            )
    if seconds:
        yield ("all", "", duration(seconds), "", *_hours(hours), "", "")


def _processors(processors: Mapping[str, float] | None) -> str:
    counts = (
        f"{count:g} {kind[:-1].upper()}{'s' * (count != 1)}" for kind, count in (processors or {}).items() if count
    )
    return ", ".join(counts)


def _hours(hours: Mapping[str, float]) -> tuple[str, str]:
    gpus, cpus = (hours.get(kind, 0.0) for kind in ("gpus", "cpus"))
    return _hour(gpus), _hour(cpus)


def _hour(hours: float) -> str:
    return f"{hours:,.2f}" if hours >= 0.01 else "< 0.01" * (hours > 0)


def _tokens(tokens: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in tokens.items() if count)

"""What a run achieved, as tables on the terminal and as RUN/report.json."""

from typing import Any, get_args

from rich.table import Table

from xlr import evaluation
from xlr.config import Flaw
from xlr.progress import console, details, duration, headline
from xlr.stage import Context
from xlr.store import manifest_path, read_json, write_json

_FLAWS = get_args(Flaw)
_COLUMNS = (
    ("complete", "complete %", 100.0),
    ("in_language", "in language %", 100.0),
    ("chars_mean", "characters", 1.0),
    ("reward_mean", "reward", 1.0),
    ("reward_wins", "beats π0 %", 100.0),
)


def collect(context: Context) -> dict[str, Any]:
    """Everything the report shows, from the files of the run."""
    found: dict[str, Any] = {"languages": list(context.config.languages), "iterations": {}}
    for iteration in range(context.config.iterations + 1):
        folder = context.run.iteration(iteration)
        entry: dict[str, Any] = {"evaluation": evaluation.read(context, iteration)}
        for name in ("responses", "scores", "pairs", "model"):
            manifest = manifest_path(folder / name)
            if manifest.is_file():
                content = read_json(manifest)
                entry[name] = {key: content[key] for key in ("rows", "seconds", "facts")}
        found["iterations"][str(iteration)] = entry
    return found


def show(context: Context) -> None:
    """Write RUN/report.json and print the tables."""
    found = collect(context)
    write_json(context.run.path / "report.json", found)
    for table in (_responses_table(found), _pairs_table(found), _evaluation_table(found), _preferences_table(found)):
        if table.row_count:
            console.print(table)
    console.print(f"report: {context.run.path / 'report.json'}")


def _evaluation_table(found: dict[str, Any]) -> Table:
    table = Table(title="Held-out prompts: one answer each", title_justify="left")
    table.add_column("language")
    table.add_column("model")
    for _, title, _ in _COLUMNS:
        table.add_column(title, justify="right")
    for lang in found["languages"]:
        for iteration, entry in found["iterations"].items():
            facts = (entry["evaluation"] or {}).get("languages", {}).get(lang)
            if facts:
                values = [f"{facts[key] * scale:.1f}" for key, _, scale in _COLUMNS]
                table.add_row(lang if iteration == "0" else "", f"π{iteration}", *values)
    return table


def _responses_table(found: dict[str, Any]) -> Table:
    table = Table(title="Sampled responses: share with each flaw, in %", title_justify="left")
    for column in ("iteration", "language", "scored", *_FLAWS):
        table.add_column(column.replace("_", " "), justify="right")
    for iteration, entry in found["iterations"].items():
        for lang, facts in entry.get("scores", {}).get("facts", {}).get("languages", {}).items():
            count = max(facts["rows"], 1)
            shares = [f"{100 * facts['flaws'].get(flaw, 0) / count:.1f}" for flaw in _FLAWS]
            table.add_row(iteration, lang, str(facts["rows"]), *shares)
    return table


def _pairs_table(found: dict[str, Any]) -> Table:
    table = Table(title="Preference pairs", title_justify="left")
    for column in ("iteration", "language", "pairs", "alpha", "length gap", "dropped"):
        table.add_column(column, justify="left" if column == "dropped" else "right")
    for iteration, entry in found["iterations"].items():
        for lang, facts in entry.get("pairs", {}).get("facts", {}).items():
            dropped = ", ".join(f"{count} {reason}" for reason, count in facts["dropped"].items())
            gap = "" if facts["length_gap"] is None else f"{facts['length_gap']:.1f}"
            table.add_row(iteration, lang, str(facts["pairs"]), f"{facts['alpha']:.3f}", gap, dropped)
    return table


def _preferences_table(found: dict[str, Any]) -> Table:
    table = Table(title="Held-out preferences: implicit reward log π − log π_I", title_justify="left")
    for column in ("model", "pairs", "accuracy %", "margin"):
        table.add_column(column, justify="right")
    for iteration, entry in found["iterations"].items():
        facts = (entry["evaluation"] or {}).get("preferences")
        if facts:
            table.add_row(
                f"π{iteration}", str(facts["pairs"]), f"{100 * facts['accuracy']:.1f}", f"{facts['margin']:.2f}"
            )
    return table


def show_status(rows: list[dict[str, Any]]) -> None:
    """Print the state of every stage."""
    table = Table()
    for column in ("stage", "state", "rows", "time"):
        table.add_column(column, justify="left" if column in ("stage", "state") else "right")
    for row in rows:
        seconds = row["seconds"]
        table.add_row(
            row["stage"],
            row["state"],
            str(row["rows"] or ""),
            duration(seconds) if seconds is not None else "",
        )
    console.print(table)
    for row in rows:
        if row["progress"]:
            console.print(headline(row["progress"]))
            for line in details(row["progress"]):
                console.print(f"  {line}")


def show_jobs(rows: list[dict[str, Any]]) -> None:
    """Print the state of every Slurm job, if there are any."""
    table = Table()
    for row in rows:
        if not table.columns:
            for column in row:
                table.add_column(column, overflow="fold")
        table.add_row(*map(str, row.values()))
    if rows:
        console.print(table)

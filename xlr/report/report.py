"""What a run achieved: RUN/report.json, report.html and report.md, and tables on the terminal.

Run alone with `xlr report RUN [RUN2 ...]`; several runs stand side by side on one page.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.table import Table

from xlr import languages
from xlr.config import settings
from xlr.errors import UserError
from xlr.evaluation import annotations, difficulty, winrates
from xlr.evaluation import answers as evaluation
from xlr.progress import console, details, duration, headline
from xlr.report import curves, tables
from xlr.report.comparison import compare
from xlr.report.conclusion import Conclusion, conclude
from xlr.run.artifact import Iteration, as_json, manifest_path, read_json, write_text
from xlr.run.context import Context

_ARTEFACTS = ("responses", "scores", "pairs", "reference", "model", "eval", "judgements")
_KEPT = ("rows", "seconds", "processors", "finished", "digest", "versions", "facts")


def make(contexts: Sequence[Context], folder: Path) -> None:
    """Write `report.html` and `report.md` of the runs into a folder and `report.json` into each run's own, and print
    the tables.

    Raises:
        UserError: a run directory is not there or named twice, or nothing can be written.
    """
    from xlr.report import page  # imports matplotlib

    for context in contexts:
        if not context.run.path.is_dir():
            raise UserError(f"{context.run.path}: no such run directory; `xlr run` makes it")
    runs = [(context, collect(context, name)) for context, name in zip(contexts, _names(contexts), strict=True)]
    found, between = [own for _, own in runs], compare(runs)
    for context, own in runs:
        _write(context.run.path / "report.json", as_json(own))
    _write(folder / "report.md", _markdown(found, between))
    _write(folder / "report.html", page.render(runs, between))
    for table in (*tables.data(found), *tables.quality(found), *tables.costs(found)):
        console.print(table.on_terminal())
    for own in found:
        console.print(f"{own['name']}: {conclude(own).sentence}")
    for _, conclusion in between:
        console.print(conclusion.sentence)
    console.print(f"report: {folder / 'report.html'}")


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make its folder writable, or choose another with --out"
        ) from error


def _names(contexts: Sequence[Context]) -> list[str]:
    """The folders' names, or their whole paths where two are called the same."""
    paths = [context.run.path for context in contexts]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path}: is named twice; name each run once")
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else list(map(str, paths))


def collect(context: Context, name: str) -> dict[str, Any]:
    """All figures of a run, from what its finished stages left."""
    iterations = {str(model): _entry(context, model) for model in context.models}
    stages = [stage for entry in iterations.values() for stage in entry["stages"].values()]
    versions: defaultdict[str, list[str]] = defaultdict(list)
    for stage in stages:
        for library, version in stage.pop("versions").items():
            if version and version not in versions[library]:
                versions[library].append(version)
    return {
        "name": name,
        "languages": list(context.config.languages),
        "evaluated": list(context.config.evaluated_languages),
        "names": {
            lang: languages.name(lang) for lang in (*context.config.languages, *context.config.evaluated_languages)
        },
        "settings": settings(context.config),
        "versions": versions,
        "finished": max((stage["finished"] for stage in stages), default=""),
        "iterations": iterations,
        "changes": _changes(context, iterations),
    }


def _entry(context: Context, model: Iteration) -> dict[str, Any]:
    """What is known of one iteration, or of a model beside them."""
    folder = context.run.iteration(model)
    stages: dict[str, Any] = {}
    for name in _ARTEFACTS:
        if manifest_path(folder / name).is_file():
            manifest = read_json(manifest_path(folder / name))
            # Manifests of earlier releases do not name processors.
            stage = {key: manifest.get(key) for key in _KEPT}
            stages[manifest["stage"]] = stage | {"tokens": _tokens(manifest, folder)}
    judgements = None
    if "judge" in stages:
        rates = read_json(folder / "judgements" / "winrates.json")
        judgements = rates | {"judge": stages["judge"]["facts"]["judge"]}
    return {"evaluation": evaluation.read(context, model), "judgements": judgements, "stages": stages}


def _tokens(manifest: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """How many tokens a stage worked on, by what it did with them."""
    stage, facts = manifest["stage"], manifest["facts"]
    if stage == "generate":
        return {"sampled": sum(own["tokens"] for own in facts.values())}
    if stage in ("score", "evaluate"):
        # Scores of earlier releases were not counted.
        return {"scored": sum(own.get("tokens", 0) for own in facts["languages"].values())}
    if stage in ("align", "train"):
        return {"trained on": int(sum(row["num_tokens"] for row in curves.training(folder)))}
    if stage == "judge":
        return {"asked": facts["prompt_tokens"], "answered": facts["completion_tokens"]}
    return {}


def _changes(context: Context, iterations: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Paired differences of win rates between iterations that were judged: each and the next, the first and the last.

    They take seconds to minutes, so those of the last report are taken again while their judgements are the same.
    """
    judged = [
        iteration for iteration in range(context.config.iterations + 1) if iterations[str(iteration)]["judgements"]
    ]
    places = range(len(judged))
    steps = list(pairwise(places))
    if len(judged) > 2:
        steps.append((0, places[-1]))
    digests = [iterations[str(iteration)]["stages"]["judge"]["digest"] for iteration in judged]
    wanted = [{"from": str(judged[a]), "to": str(judged[b]), "digests": [digests[a], digests[b]]} for a, b in steps]
    last = context.run.path / "report.json"
    known = read_json(last).get("changes", []) if last.is_file() else []
    if [{key: value for key, value in one.items() if key != "difference"} for one in known] == wanted:
        return known
    files = [annotations.read(context.run.iteration(iteration) / "judgements" / "annotations") for iteration in judged]
    table = difficulty.load(context.config.judge.difficulty)
    differences = winrates.changes(files, steps, table) if steps else []
    return [own | {"difference": difference} for own, difference in zip(wanted, differences, strict=True)]


def _markdown(found: Sequence[Mapping[str, Any]], between: Sequence[tuple[str, Conclusion]]) -> str:
    """The answers, facts and tables for a README or a pull request."""
    parts = [f"# {tables.plain(', '.join(own['name'] for own in found))}\n"]
    for heading, conclusion in between:
        parts += _answer(heading, conclusion)
    for own in found:
        parts += _answer(own["name"], conclude(own))
        parts.append("".join(f"- {name}: {tables.plain(value)}\n" for name, value in tables.summary(own)))
    shown = (*tables.quality(found), *tables.data(found), *tables.costs(found), *tables.facts(found))
    return "\n".join([*parts, *(table.in_markdown() for table in shown)])


def _answer(heading: str, conclusion: Conclusion) -> list[str]:
    answer = [f"## {tables.plain(heading)}\n\n**{tables.plain(conclusion.sentence)}**\n"]
    if conclusion.findings:
        answer.append(tables.plain(f"{conclusion.figure}; {conclusion.basis}.") + "\n")
    return answer


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

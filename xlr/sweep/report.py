"""The report of a sweep: SWEEP/report.html and report.md."""

from collections.abc import Sequence
from pathlib import Path

from xlr import configfile
from xlr.errors import UserError
from xlr.findings.collect import collect
from xlr.findings.conclusion import Conclusion, Finding
from xlr.findings.found import AVERAGE, Run
from xlr.report import tables
from xlr.run.directory import RunDir
from xlr.run.files import write_text
from xlr.sweep.comparison import Cost, Measure, conclusions, costs, measures, shown, sides
from xlr.terminal.console import Table, console, number_columns, plain, text_columns

_NOTE = (
    "All variants and languages are tested together, with Holm’s correction; the averages are a family of their own. "
    "Answers to the same prompt are compared with each other."
)


def make(folder: Path, directories: Sequence[Path]) -> None:
    """Report on the runs of a sweep, the first of which is the base.

    Raises:
        UserError: fewer than two are evaluated, or a file is damaged.
    """
    runs = [_run(directory) for directory in directories]
    evaluated = sides(runs)
    if len(evaluated) < 2 or evaluated[0].run is not runs[0]:
        done = ", ".join(side.run.name for side in evaluated) or "none"
        raise UserError(f"{folder}: nothing to compare yet: the base and one variant must be evaluated, so far {done}")
    base, *others = evaluated
    compared = conclusions(base, others)
    unit, taken = costs([side.run.found for side in evaluated])
    named = base.run.found["names"]
    shown_tables = [
        _overview(compared, unit, taken),
        *(_by_language(measure, named) for measure in measures(base, others)),
        *tables.facts([side.run.found for side in evaluated])[:1],  # the settings that differ
    ]
    write_text(folder / "report.md", _markdown(folder.name, compared, shown_tables))
    write_text(folder / "report.html", _page(folder, compared, unit, taken, shown_tables, named))
    for _, conclusion in compared:
        console.print(conclusion.sentence)
    console.print(shown_tables[0].on_terminal())
    console.print(f"report: {folder / 'report.html'}")


def _run(directory: Path) -> Run:
    config, own = configfile.load_here(directory), RunDir(directory)
    return Run(config, own, collect(config, own, directory.name))


def _gain(conclusion: Conclusion) -> Finding | None:
    """The change on average over the languages, or that of the only language; None if nothing was compared."""
    found = sorted(conclusion.findings, key=lambda one: one.lang != AVERAGE)
    return found[0] if found else None


def _overview(compared: Sequence[tuple[str, Conclusion]], unit: str, taken: Sequence[Cost]) -> Table:
    """Each variant: gain, certainty, cost."""
    rows = [("base", "", "", "", f"{taken[0].alone:.3g}", f"{taken[0].added:.3g}")]
    for (name, conclusion), cost in zip(compared, taken[1:], strict=True):
        gain = _gain(conclusion)
        cells = ("", "", "") if gain is None else (gain.shown, gain.interval, gain.verdict)
        rows.append((name, *cells, f"{cost.alone:.3g}", f"{cost.added:.3g}"))
    rows.append(("all", "", "", "", f"{sum(one.alone for one in taken):.3g}", f"{sum(one.added for one in taken):.3g}"))
    numbers = number_columns("gain", "95 %")
    columns = (*text_columns("variant"), *numbers, *text_columns("verdict"))
    return Table(
        "Gain over the base, and what it takes", (*columns, *number_columns(f"{unit} alone", f"{unit} added")), rows
    )


def _by_language(measure: Measure, named: dict[str, str]) -> Table:
    """A share of answers: the base's in each language, then the change of each variant in percentage points."""
    langs = list(measure.base)
    rows = [("base", *(f"{100 * measure.base[lang]:.0f} %" for lang in langs))]
    rows += [
        (name, *(shown(own[lang]) if lang in own else "" for lang in langs)) for name, own in measure.changes.items()
    ]
    columns = (*text_columns("variant"), *number_columns(*(named.get(lang, lang) for lang in langs)))
    return Table(f"{measure.title}: the base, and changes in percentage points", columns, rows)


def _markdown(name: str, compared: Sequence[tuple[str, Conclusion]], shown_tables: Sequence[Table]) -> str:
    answers = [f"## {plain(variant)}\n\n{plain(conclusion.sentence)}\n" for variant, conclusion in compared]
    notes = [f"{conclusion.evidence}. {_NOTE}\n" for _, conclusion in compared[:1]]
    return "\n".join([f"# {plain(name)}\n", *answers, *notes, *(table.in_markdown() for table in shown_tables)])


def _page(
    folder: Path,
    compared: Sequence[tuple[str, Conclusion]],
    unit: str,
    taken: Sequence[Cost],
    shown_tables: Sequence[Table],
    named: dict[str, str],
) -> str:
    from xlr.report import page, plots  # imports matplotlib

    gains = {
        name: (cost.alone, (gain.value, gain.low, gain.high))
        for (name, conclusion), cost in zip(compared, taken[1:], strict=True)
        if (gain := _gain(conclusion))
    }
    return (
        page.environment()
        .get_template("sweep.html")
        .render(
            title=folder.name,
            conclusions=compared,
            note=_NOTE,
            languages=named,
            picture=plots.gains(f"Gain over the base against {unit}", unit, gains) if gains else None,
            tables=shown_tables,
            reports=[
                (name, f"{name}/report.html")
                for name in ("base", *(name for name, _ in compared))
                if (folder / name / "report.html").is_file()
            ],
        )
    )

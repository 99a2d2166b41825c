"""What runs achieved: RUN/report.json, report.html and report.md, and tables on the terminal.

Run alone with `xlr report RUN [RUN2 ...]`, which shows several runs side by side on one page.
"""

from collections.abc import Sequence
from pathlib import Path

from xlr.errors import UserError
from xlr.findings import overview
from xlr.findings.collect import collect
from xlr.findings.comparison import compare
from xlr.findings.conclusion import Conclusion, conclude
from xlr.findings.found import Run
from xlr.findings.summary import summary
from xlr.report import tables
from xlr.run.directory import RunDir
from xlr.run.files import as_json, write_text
from xlr.settings.config import Config
from xlr.terminal.console import console, plain


def make(configs: Sequence[Config], folder: Path, show_tables: bool = False) -> None:
    """Report on runs, one for each configuration.

    Writes report.html and report.md into `folder` and report.json into each run directory, and prints a few sentences.

    Args:
        show_tables: also print the tables.

    Raises:
        UserError: a run directory is missing or named twice, or a file cannot be written.
    """
    from xlr.report import page  # imports matplotlib

    directories = [RunDir(config.run_dir) for config in configs]
    for directory in directories:
        if not directory.path.is_dir():
            raise UserError(f"{directory.path}: no such run directory; `xlr run` creates it")
    runs = [
        Run(config, directory, collect(config, directory, name))
        for config, directory, name in zip(configs, directories, _names(directories), strict=True)
    ]
    found, comparisons = [run.found for run in runs], compare(runs)
    for run in runs:
        _write(run.directory.path / "report.json", as_json(run.found))
    _write(folder / "report.md", _markdown(runs, comparisons))
    _write(folder / "report.html", page.render(runs, comparisons))
    if show_tables:
        for table in (*tables.data(found), *tables.quality(found), *tables.costs(found)):
            console.print(table.on_terminal())
    for run in runs:
        for number, line in enumerate(overview.lines(run.found)):
            console.print(f"{run.name}: {line}" if number == 0 else line)
    for _, conclusion in comparisons:
        console.print(conclusion.sentence)
    console.print(f"report: {folder / 'report.html'}")


def _names(directories: Sequence[RunDir]) -> list[str]:
    """The names of the run directories, or their whole paths if two have the same name."""
    paths = [directory.path for directory in directories]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path}: is named twice; name each run once")
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else list(map(str, paths))


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make its folder writable, or choose another with --out"
        ) from error


def _markdown(runs: Sequence[Run], comparisons: Sequence[tuple[str, Conclusion]]) -> str:
    """The report for a README or a pull request: answers, facts and tables."""
    found = [run.found for run in runs]
    parts = [f"# {plain(', '.join(run.name for run in runs))}\n"]
    for heading, conclusion in comparisons:
        parts += _answer(heading, conclusion)
    for run in runs:
        parts += _answer(run.name, conclude(run.found))
        parts.append("".join(f"- {name}: {plain(value)}\n" for name, value in summary(run.found)))
    shown = (*tables.quality(found), *tables.data(found), *tables.costs(found), *tables.facts(found))
    return "\n".join([*parts, *(table.in_markdown() for table in shown)])


def _answer(heading: str, conclusion: Conclusion) -> list[str]:
    answer = [f"## {plain(heading)}\n\n**{plain(conclusion.sentence)}**\n"]
    if conclusion.caution:
        answer.insert(1, plain(conclusion.caution) + ".\n")
    if conclusion.findings:
        answer.append(plain(f"{conclusion.heading}. {conclusion.evidence}.") + "\n")
    return answer

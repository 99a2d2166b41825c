"""Writes `docs/examples/NAME.html`, a report, from the numbers of a run in `docs/examples/NAME/`.

`python docs/examples.py` renders all of them; `make docs` does so first. `python docs/examples.py RUN`, in the folder
in which the run was made, takes over what a report needs of it, without its models, as the example of the run's name.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = Path(__file__).parent / "examples"
_READ = ("metrics.jsonl", "*.manifest.json", "pairs/*", "scores/*", "eval/**/*", "judgements/**/*")


def take_over(run: Path) -> None:
    """Copy what a report needs of a run. Paths of its configuration become relative."""
    target = EXAMPLES / run.name
    shutil.rmtree(target, ignore_errors=True)
    for file in (file for pattern in _READ for file in run.glob(f"iter*/{pattern}") if file.is_file()):
        copy = target / file.relative_to(run)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (target / "config.yaml").write_text(text.replace(f"{Path.cwd()}/", ""), encoding="utf-8")


def render(example: Path) -> None:
    """Write the page of an example. The report also writes into the run, so it gets a copy, whose path is removed."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder).resolve() / example.name
        shutil.copytree(example, run)
        subprocess.run([sys.executable, "-m", "xlr", "report", example.name], check=True, cwd=run.parent)
        page = (run / "report.html").read_text(encoding="utf-8").replace(f"{run.parent}/", "")
        example.with_suffix(".html").write_text(page, encoding="utf-8")


def examples(arguments: Sequence[str]) -> None:
    """Take over the runs that are named, and render all examples."""
    for run in arguments:
        take_over(Path(run))
    for example in sorted(path for path in EXAMPLES.iterdir() if path.is_dir()):
        render(example)


if __name__ == "__main__":
    examples(sys.argv[1:])

"""`xlr status` on the terminal."""

import io

import pytest

from xlr.findings import status
from xlr.terminal.console import Console
from xlr.terminal.progress import Step


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    made = Console(file=io.StringIO(), width=100)
    monkeypatch.setattr(status, "console", made)
    return made


def said(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_unfinished_stages_show_their_progress(console: Console) -> None:
    step = Step("generate", {"en": 4}, "responses", {"en": 1}, lambda state: None)
    status.show_status(
        [
            {"stage": "align", "state": "done", "rows": 12, "seconds": 75.2, "memory": 5_000_000_000, "progress": None},
            {
                "stage": "generate 1",
                "state": "running",
                "rows": None,
                "seconds": None,
                "memory": 0,
                "progress": step.state(),
            },
        ]
    )
    lines = said(console).splitlines()
    assert any("align" in line and "12" in line and "1:15" in line and "5 GB" in line for line in lines)
    assert lines[-2].startswith("generate: 1/4 responses")
    assert lines[-1] == "  en 1/4"


def test_jobs_show_the_last_line_of_their_log_as_it_is(console: Console) -> None:
    status.show_jobs([])
    assert said(console) == ""
    status.show_jobs([{"job": "train-1", "state": "RUNNING", "last line": "[rank 0] loss [/bold] 0.69"}])
    assert "[rank 0] loss [/bold] 0.69" in said(console)

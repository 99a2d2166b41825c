"""The progress of a step: the step itself and its state in a file show the same."""

import json
import time
from typing import Any

import pytest

from xlr.terminal import progress
from xlr.terminal.console import Console
from xlr.terminal.progress import Clock, Step, StepState, Tally, details, headline


def step(**changes: Any) -> Step:
    made = Step("generate", {"en": 10, "sw": 30}, "responses", {"en": 4}, lambda state: None)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def shown(state: StepState) -> str:
    return "\n".join((headline(state), *details(state)))


def test_a_state_read_from_a_file_shows_the_same() -> None:
    running = step(workers=[Tally("node1", 3, 1.5, 20.0), Tally("node2", 1, 1.0, 9.0, splits=2, lost=True)])
    running.advance({"en": 2, "sw": 6}, tokens=1200)
    state = running.state()
    state["seconds"] = 40.0
    assert shown(json.loads(json.dumps(state))) == (
        "generate: 12/40 responses, 0.2/s, 30 tokens/s, 2:20 left, workers lost: 1, batches split for memory: 2\n"
        "en 6/10   sw 6/30\n"
        "node1: 3 tasks, computing 50 % of the time, loading 0:02\n"
        "node2: 1 tasks, computing 22 % of the time, loading 0:01, lost"
    )


def test_a_step_without_units_is_shown() -> None:
    nothing = Step("score", {}, "responses", {}, lambda state: None)
    assert shown(nothing.state()) == "score: 0/0 responses, 0/s"


def test_many_workers_are_shown_by_node() -> None:
    running = step(workers=[Tally(f"node{number % 2}", 1, 0.0, 10.0) for number in range(64)])
    state = running.state()
    state["seconds"] = 20.0
    assert details(state)[1:] == [
        f"node{number}: 32 workers: 32 tasks, computing 50 % of the time, loading 0:00" for number in range(2)
    ]


def test_the_state_is_kept_at_once_and_then_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[StepState] = []
    running = Step("score", {"en": 1000}, "responses", {}, kept.append)
    for _ in range(100):
        running.advance({"en": 1})
    assert [state["languages"]["en"] for state in kept] == [[1, 1000]]
    monkeypatch.setattr(progress, "_KEEP_SECONDS", 0.0)
    running.advance({"en": 1})
    assert kept[-1]["languages"]["en"] == [101, 1000]


def test_a_terminal_shows_a_bar_and_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, width=100, record=True)
    monkeypatch.setattr(progress, "console", terminal)
    with progress.step("score", {"de": 4}, "responses", {}, lambda state: None) as running:
        running.workers = [Tally("node7")]
        running.advance({"de": 1}, tokens=50)
        time.sleep(1.2)
    text = terminal.export_text()
    assert "de 1/4" in text
    assert "node7: 0 tasks" in text
    assert text.rstrip().splitlines()[-1].startswith("  score: 1/4 responses")


def test_the_clock_adds_seconds_by_name() -> None:
    clock = Clock()
    for _ in range(2):
        with clock.measure("write"):
            time.sleep(0.01)
    assert 0.02 <= clock.seconds["write"] <= clock.total
    console = Console(width=80, record=True)
    console.print(clock.table())
    assert "write" in console.export_text()

"""Tables and durations, as the user sees them."""

import pytest
from rich.console import Console

from xlr.console import Table, duration, number_columns, text_columns

TABLE = Table("t", (*text_columns("model"), *number_columns("reward")), [("a|b <i> `c`", "1"), ("[/d]", "22.5")])


def test_markdown_escapes_what_it_would_interpret() -> None:
    assert TABLE.in_markdown().splitlines() == [
        "### t",
        "",
        "| model | reward |",
        "| --- | ---: |",
        "| a\\|b \\<i\\> \\`c\\` | 1 |",
        "| \\[/d\\] | 22.5 |",
    ]


def test_the_terminal_aligns_numbers_right_and_shows_markup_as_text() -> None:
    console = Console(width=60, record=True)
    console.print(TABLE.on_terminal())
    text = console.export_text()
    assert "│ a|b <i> `c` │      1 │" in text
    assert "│ [/d]        │   22.5 │" in text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (75.2, "1:15"), (3675.0, "1:01:15")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text

"""What the user sees: tables, durations, and texts from outside, which cannot steer the terminal."""

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from xlr.commands import cli
from xlr.foreign.texts import brief, control_in, is_blank, shown, surrogate_in
from xlr.terminal.console import Console, Table, duration, number_columns, text_columns

TABLE = Table("t", (*text_columns("model"), *number_columns("reward")), [("a|b <i> `c`", "1"), ("[/d]", "22.5")])
JUNK = [
    "[/red]",
    "[bold]x[/]",
    ":smile:",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "a\rb",
    "\x9b2J",
    "\x00",
    "\u202eabc",
    "\ud800",
]


def printed(*things: object, terminal: bool = True) -> str:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=terminal, color_system="truecolor" if terminal else None)
    for thing in things:
        console.print(thing)
    return file.getvalue()


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
    text = printed(TABLE.on_terminal(), terminal=False)
    assert "│ a|b <i> `c` │      1 │" in text
    assert "│ [/d]        │   22.5 │" in text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (75.2, "1:15"), (3675.0, "1:01:15")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("junk", JUNK)
def test_nothing_from_outside_is_interpreted_wherever_it_is_printed(junk: str) -> None:
    table = Table(junk, text_columns(junk, "other"), [(junk, "1"), ("b", junk)])
    for thing in (junk, Text(junk, style="bold"), Padding(Text(junk), (0, 0, 0, 2)), table.on_terminal()):
        text = printed(thing, terminal=False)
        assert control_in(text, lines=True) is None
        # rich itself drops some characters from a Text, so only what is left must be escaped.
        assert shown(junk) in text or isinstance(thing, Text | Padding)
    lines = printed(table.on_terminal(), terminal=False).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1, "a table's columns stay aligned"


def test_styles_and_live_views_still_work_on_a_terminal() -> None:
    assert "\x1b[1m" in printed(Text("bold", style="bold"))
    file = io.StringIO()
    console = Console(file=file, width=60, force_terminal=True)
    with Live(Text("\x1b[31mstate"), console=console):
        pass
    assert "\x1b[31m" not in file.getvalue()
    assert "\\u001b[31mstate" in file.getvalue()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_ordinary_text_stays_and_json_stays_the_same_json(text: str) -> None:
    assert control_in(shown(text), lines=True) is None
    assert shown(shown(text)) == shown(text)
    assert (shown(text) == text) == (control_in(text, lines=True) is None)
    assert json.loads(shown(json.dumps(text, ensure_ascii=False))) == text


def test_languages_are_not_escaped() -> None:
    for text in ("نص عربي", "می\u200cخواهم", "עברית\u200f!", "👩\u200d🚀", "हिन्दी", "a\tb\nc"):
        assert shown(text) == text


def test_what_is_blank_and_what_cannot_be_written() -> None:
    for text in ("", " \t\n", "\u200b\u200d\ufeff", "\u2060\u00ad", "\u3164\u2800", "\x00\x1b", "\u0301", "\ufe0f"):
        assert is_blank(text), ascii(text)
    for text in ("a", "?", "١", "ไ", "😀", "\u200bа", "\ue000"):
        assert not is_blank(text), ascii(text)
    assert (surrogate_in("a\x00"), surrogate_in("a\udfff")) == (None, "\\udfff")


def test_a_value_is_shown_briefly_whatever_it_is() -> None:
    deep: object = 0
    for _ in range(10**4):
        deep = [deep]
    for value in (10**5000, "x" * 10**6, {"a": float("nan")}, deep, {(1, 2): 3}, b"\xff", "\ud800\x1b"):
        text = brief(value)
        assert len(text) < 100
        assert control_in(text) is None


@pytest.mark.usefixtures("same_signals")
def test_an_error_line_shows_control_characters_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("\x1b[31m.yaml", "\udcff.yaml"):
        monkeypatch.setattr(sys, "argv", ["xlr", "config", str(tmp_path / name)])
        monkeypatch.setenv("XLR_ERROR_FILE", str(tmp_path / "error"))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert "no such configuration file" in (tmp_path / "error").read_text(encoding="utf-8")
        assert capsys.readouterr().err.startswith(f"error: {tmp_path}/{shown(name)}: no such configuration file")

"""What `xlr inspect` found, on the terminal and as Markdown."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.padding import Padding
from rich.text import Text

from xlr import languages
from xlr.console import Column, Table, console, number_columns, text_columns

_LINES = 2  # of a text on the terminal
_INDENT = 5
_MARKDOWN_CHARACTERS = 500
_GROUPS = ("candidates", "chosen", "rejected")
_OF_GROUPS = (("chars_mean", 1), ("in_language", 100))
_LEGEND = (
    "Rewards are in nats; + marks the best candidate and - the worst after length control, which make the pair. "
    "spread: standard deviation within prompts. length ρ: Spearman's correlation of reward and length. "
    "α: length penalty that balances these candidates, or with * the run's own pairs. "
    "chars, in language: all candidates/best/worst."
)


def show(found: Mapping[str, Any]) -> None:
    """Print candidates and figures, and last, where a reader looks first, the verdicts."""
    for lang, own in found["languages"].items():
        console.rule(f"{languages.name(lang)} ({lang})", align="left", style="bold")
        for prompt in own["prompts"]:
            _show_prompt(prompt, list(own["modes"]), found["reward"])
        for table in _figures(own):
            console.print(table.on_terminal())
    console.print(Text(_LEGEND, style="dim"), soft_wrap=False)
    for lang, own in found["languages"].items():
        console.print(Text(_headline(lang, own), style="bold"))
        for fact in own["verdict"]:
            line = Text(f"{_mark(fact)} {fact['text']}", style="yellow" if fact["warning"] else "")
            console.print(Padding(line, (0, 0, 0, 2), expand=False), soft_wrap=False)


def markdown(found: Mapping[str, Any]) -> str:
    """The same as a Markdown page, verdicts first."""
    lines = [
        f"# Rewards of iteration {found['iteration']}",
        "",
        f"{found['formula']}, policy `{found['policy']}`, reference `{found['reference']}`. {_LEGEND}",
    ]
    for lang, own in found["languages"].items():
        lines += ["", f"## {_headline(lang, own)}", "", *(f"- {_mark(fact)} {fact['text']}" for fact in own["verdict"])]
        modes, tables = list(own["modes"]), _figures(own)
        for prompt in own["prompts"]:
            rows = [
                (*_cells(row, modes), _cut(row["response"]), _cut(row["translation"] or ""))
                for row in _ordered(prompt, modes, found["reward"])
            ]
            title = f"{prompt['id']}: {_one_line(prompt['instruction'])}"
            tables.append(Table(title, (*_columns(modes), *text_columns("response", "translation")), rows))
        lines += ["", *(table.in_markdown() for table in tables)]
    return "\n".join(lines)


def _headline(lang: str, own: Mapping[str, Any]) -> str:
    warnings = sum(fact["warning"] for fact in own["verdict"])
    return f"{languages.name(lang)} ({lang}): {warnings or 'no'} warning{'' if warnings == 1 else 's'}"


def _mark(fact: Mapping[str, Any]) -> str:
    return "!" if fact["warning"] else "·"


def _show_prompt(prompt: Mapping[str, Any], modes: Sequence[str], main: str) -> None:
    """Texts have lines of their own: those written from right to left or in wide characters shift no figure."""
    console.print(Text(f"\n{prompt['id']}: {_one_line(prompt['instruction'])}", style="bold"))
    if prompt["english"] != prompt["instruction"]:
        console.print(Text(f"{' ' * _INDENT}{_one_line(prompt['english'])}", style="dim"))
    console.print(Text(_line([column.heading for column in _columns(modes)]), style="dim"))
    for row in _ordered(prompt, modes, main):
        console.print(Text(_line(_cells(row, modes))))
        _show_text(row["response"] or "(empty)", "")
        if row["translation"] not in (None, row["response"]):
            _show_text(row["translation"], "dim")


def _show_text(text: str, style: str) -> None:
    shown = Text(_one_line(text), style=style)
    shown.truncate(_LINES * (console.width - _INDENT) - _INDENT, overflow="ellipsis")  # lines end between words
    console.print(Padding(shown, (0, 0, 0, _INDENT), expand=False), soft_wrap=False)


def _ordered(prompt: Mapping[str, Any], modes: Sequence[str], main: str) -> list[dict[str, Any]]:
    """The best under the run's own reward first, what has none last."""
    order = main if main in modes else modes[0]
    return sorted(prompt["candidates"], key=lambda row: -row["rewards"].get(order, float("-inf")))


def _columns(modes: Sequence[str]) -> tuple[Column, ...]:
    return (*number_columns("#", *modes, "chars"), *text_columns("lang", "flaws"))


def _cells(row: Mapping[str, Any], modes: Sequence[str]) -> list[str]:
    flaws = ", ".join(row["flaws"]).replace("_", " ")
    return [str(row["sample"]), *(_reward(row, mode) for mode in modes), str(row["chars"]), row["language"], flaws]


def _reward(row: Mapping[str, Any], mode: str) -> str:
    if mode not in row["rewards"]:
        return ""
    mark = "+" if mode in row["chosen_by"] else "-" if mode in row["rejected_by"] else " "
    return f"{row['rewards'][mode]:.2f} {mark}"


def _line(cells: Sequence[str]) -> str:
    sample, *rewards, chars, lang, flaws = cells
    return f"{sample:>4}{''.join(f'{cell:>15}' for cell in rewards)}{chars:>8}  {lang:<5} {flaws}"


def _figures(own: Mapping[str, Any]) -> list[Table]:
    rewards = [
        (
            mode,
            f"{facts['candidates']['reward_mean']:.2f}",
            _number(facts["reward_deviation"]),
            _number(facts["length_correlation"]),
            f"{facts['alpha']:.3f}{'*' * (facts['alpha_of'] == 'pairs')}",
            *("/".join(_rounded(facts[group], key, scale) for group in _GROUPS) for key, scale in _OF_GROUPS),
        )
        for mode, facts in own["modes"].items()
    ]
    agreement = [
        (
            " / ".join(facts["modes"]),
            "" if facts["same_order"] is None else f"{100 * facts['same_order']:.0f}",
            str(facts["candidate_pairs"]),
            _number(facts["spearman"]),
            _number(facts["kendall"]),
            *(f"{facts[key]}/{facts['prompts']}" for key in ("same_best", "same_worst")),
        )
        for facts in own["agreement"]
    ]
    columns = number_columns("mean", "spread", "length ρ", "α", "chars", "in language %")
    found = [Table("Rewards within prompts", (*text_columns("mode"), *columns), rewards)]
    if agreement:
        columns = number_columns("same order %", "of pairs", "ρ", "τ", "same best", "same worst")
        found.append(Table("How the modes agree", (*text_columns("modes"), *columns), agreement))
    return found


def _rounded(facts: Mapping[str, Any], key: str, scale: int) -> str:
    return f"{scale * facts[key]:.0f}" if facts["rows"] else "–"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _cut(text: str) -> str:
    text = _one_line(text)
    return text if len(text) <= _MARKDOWN_CHARACTERS else f"{text[:_MARKDOWN_CHARACTERS]}…"


def _one_line(text: str) -> str:
    """A model may write anything, what steers a terminal included."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())

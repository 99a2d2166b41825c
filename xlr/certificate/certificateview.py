"""A certificate on the terminal and as Markdown."""

import re
from collections.abc import Sequence
from itertools import accumulate

from rich.cells import cell_len
from rich.padding import Padding
from rich.text import Text

from xlr.certificate.facts import (
    Certificate,
    CertifiedLanguage,
    Decision,
    ModeFacts,
    Remark,
    ShownCandidate,
    ShownPrompt,
    TokenMap,
)
from xlr.certificate.verdict import in_words
from xlr.foreign.texts import beginning
from xlr.rewarding.facts import RewardFacts
from xlr.settings.scoreconfig import Reward
from xlr.terminal.console import Column, Table, console, duration, number_columns, text_columns
from xlr.terminal.tokens import token_style

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LINES = 2  # lines of a text on the terminal; longer texts are cut
_INDENT = 5
_MARKDOWN_CHARACTERS = 500  # longer texts are cut in Markdown
_LEGEND = (
    "Rewards are in nats, ratings of a reward model in its own points. + marks the best and - the worst candidate "
    "after length control; the two make the pair. spread: standard deviation within prompts. length ρ: Spearman's "
    "correlation of reward and length. α: length penalty that makes chosen and rejected equally long. chars, in "
    "language: all candidates/best/worst."
)


def show(found: Certificate, prompts: int) -> None:
    """Print candidates and figures. The verdicts come last, where they stay visible above the prompt.

    Args:
        prompts: how many prompts of each language are shown with their candidates.
    """
    for lang, own in found["languages"].items():
        console.rule(f"{own['name']} ({lang})", align="left", style="bold")
        for prompt in own["prompts"][:prompts]:
            _show_prompt(prompt, list(own["modes"]), found["reward"])
        for table in _figures(own):
            console.print(table.on_terminal())
        for map_ in own["tokens"]:
            console.print(_coloured(map_))
    console.print(Text(_LEGEND, style="dim"), soft_wrap=False)
    for lang, own in found["languages"].items():
        console.print(Text(headline(lang, own), style=f"bold {_COLOURS[own['verdict']['decision']]}"))
        for remark in own["verdict"]["remarks"]:
            line = Text(_bullet(remark), style="yellow" if remark["warning"] else "")
            console.print(Padding(line, (0, 0, 0, 2), expand=False), soft_wrap=False)
    console.print(Text(_cost(found), style="dim"), soft_wrap=False)


_COLOURS: dict[Decision, str] = {"go": "green", "go with": "green", "do not": "red", "not clear": "yellow"}


def _cost(found: Certificate) -> str:
    cost = found["cost"]
    return (
        f"It took {duration(cost['seconds'])}: {100 * cost['sampled']:.1f} % of the responses that the iteration "
        f"samples in these languages, {100 * cost['scored']:.1f} % of those that it scores, and {cost['labelled']:,} "
        "scored answers of preferences and questions."
    )


def _coloured(found: TokenMap) -> Text:
    """A response whose tokens have colours by their share of the reward."""
    side = "chosen" if found["chosen"] else "rejected"
    text = Text(f"{found['id']}, {side}, {sum(ratio for _, ratio in found['pieces']):+.1f} nats: ", style="bold")
    for piece, ratio in found["pieces"]:
        text.append(_CONTROL.sub(" ", piece), style=token_style(ratio))
    return text


def markdown(found: Certificate) -> str:
    """The result as a Markdown page; each language begins with its verdict."""
    lines = [
        f"# Rewards of iteration {found['iteration']}",
        "",
        f"{found['formula']}, policy `{found['policy']}`, reference `{found['reference']}`. {_LEGEND}",
    ]
    for lang, own in found["languages"].items():
        remarks = own["verdict"]["remarks"]
        lines += ["", f"## {headline(lang, own)}", "", *(f"- {_bullet(remark)}" for remark in remarks)]
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


def headline(lang: str, own: CertifiedLanguage) -> str:
    """The verdict in a line."""
    return f"{own['name']} ({lang}): {in_words(own['verdict'])}"


def _bullet(remark: Remark) -> str:
    return f"{'!' if remark['warning'] else '·'} {remark['text']}"


def _show_prompt(prompt: ShownPrompt, modes: Sequence[Reward], main: Reward) -> None:
    """Print one prompt. Texts have their own lines: right-to-left or wide characters would shift the figures."""
    console.print(Text(f"\n{prompt['id']}: {_one_line(prompt['instruction'])}", style="bold"))
    if prompt["english"] != prompt["instruction"]:
        console.print(Text(f"{' ' * _INDENT}{_one_line(prompt['english'])}", style="dim"))
    console.print(Text(_line([column.heading for column in _columns(modes)]), style="dim"))
    for row in _ordered(prompt, modes, main):
        console.print(Text(_line(_cells(row, modes))))
        _show_text(row["response"] or "(empty)", "")
        if row["translation"] is not None and row["translation"] != row["response"]:
            _show_text(row["translation"], "dim")


def _show_text(text: str, style: str) -> None:
    # Less than _LINES full lines, because a word that does not fit moves to the next line.
    shown = _fitting(_one_line(text), _LINES * (console.width - _INDENT) - _INDENT)
    console.print(Padding(Text(shown, style=style), (0, 0, 0, _INDENT), expand=False), soft_wrap=False)


def _fitting(text: str, cells: int) -> str:
    """The text, or its beginning with an ellipsis, in so many cells of a terminal."""
    if cell_len(text) <= cells:
        return text
    ends = accumulate(map(cell_len, text))
    return f"{beginning(text, next(index for index, end in enumerate(ends) if end >= cells))}…"


def _ordered(prompt: ShownPrompt, modes: Sequence[Reward], main: Reward) -> list[ShownCandidate]:
    """Candidates by the reward in the run's own mode, the best first and those without a reward last."""
    order = main if main in modes else modes[0]
    return sorted(prompt["candidates"], key=lambda row: -row["rewards"].get(order, float("-inf")))


def _columns(modes: Sequence[Reward]) -> tuple[Column, ...]:
    return (*number_columns("#", *modes, "chars"), *text_columns("lang", "flaws"))


def _cells(row: ShownCandidate, modes: Sequence[Reward]) -> list[str]:
    flaws = ", ".join(row["flaws"]).replace("_", " ")
    return [str(row["sample"]), *(_reward(row, mode) for mode in modes), str(row["chars"]), row["language"], flaws]


def _reward(row: ShownCandidate, mode: Reward) -> str:
    if mode not in row["rewards"]:
        return ""
    mark = "+" if mode in row["chosen_by"] else "-" if mode in row["rejected_by"] else " "
    return f"{row['rewards'][mode]:.2f} {mark}"


def _line(cells: Sequence[str]) -> str:
    sample, *rewards, chars, lang, flaws = cells
    return f"{sample:>4}{''.join(f'{cell:>15}' for cell in rewards)}{chars:>8}  {lang:<5} {flaws}"


def _figures(own: CertifiedLanguage) -> list[Table]:
    """The tables of a language: its rewards, and the agreement of its modes if there are several."""
    rewards = [
        (
            mode,
            f"{facts['candidates']['reward_mean']:.2f}",
            _number(facts["reward_deviation"]),
            _number(facts["length_correlation"]),
            f"{facts['alpha']:.3f}",
            "/".join(_rounded(group["chars_mean"], group) for group in _groups(facts)),
            _in_language(facts),
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
            f"{facts['same_best']}/{facts['prompts']}",
            f"{facts['same_worst']}/{facts['prompts']}",
        )
        for facts in own["agreement"]
    ]
    columns = number_columns("mean", "spread", "length ρ", "α", "chars", "in language %")
    found = [Table("Rewards within prompts", (*text_columns("mode"), *columns), rewards)]
    if agreement:
        columns = number_columns("same order %", "of pairs", "ρ", "τ", "same best", "same worst")
        found.append(Table("How the modes agree", (*text_columns("modes"), *columns), agreement))
    return found


def _groups(mode: ModeFacts) -> tuple[RewardFacts, ...]:
    return mode["candidates"], mode["chosen"], mode["rejected"]


def _in_language(facts: ModeFacts) -> str:
    """The shares of all candidates, the best and the worst; a dash if no detector knows the language."""
    shares = [(group["in_language"], group) for group in _groups(facts)]
    return "/".join("–" if share is None else _rounded(100 * share, group) for share, group in shares)


def _rounded(value: float, facts: RewardFacts) -> str:
    """A mean over responses, or a dash if there are none."""
    return f"{value:.0f}" if facts["rows"] else "–"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _cut(text: str) -> str:
    text = _one_line(text)
    return text if len(text) <= _MARKDOWN_CHARACTERS else f"{beginning(text, _MARKDOWN_CHARACTERS)}…"


def _one_line(text: str) -> str:
    """The text on one line, without control characters: a model may write some that steer the terminal."""
    return " ".join(_CONTROL.sub(" ", text).split())

"""The terminal and the Markdown page show text in every script, without control characters."""

import io
from typing import Any

import pytest
from rich.cells import cell_len

from xlr.certificate import certificateview
from xlr.terminal.console import Console

CHINESE = "睡前不要喝咖啡，也不要看手机。" * 30
ARABIC = "لا تشرب القهوة قبل النوم."
HOSTILE = "bold\x1b[31mred\x1b]0;title\x07 | pipe\r\nnew line"


def found() -> dict[str, Any]:
    facts = {"rows": 3, "reward_mean": 1.5, "chars_mean": 20.0, "in_language": 1.0}
    mode = {
        "candidates": facts,
        "chosen": facts,
        "rejected": facts | {"rows": 0},
        "reward_deviation": 0.5,
        "length_correlation": None,
        "alpha": 0.012,
    }
    candidates = [
        {
            "sample": sample,
            "response": text,
            "translation": None,
            "chars": len(text),
            "language": "zh",
            "flaws": ["wrong_language"],
            "rewards": {"crosslingual": float(sample)} if text else {},
            "chosen_by": ["crosslingual"] if sample == 2 else [],
            "rejected_by": ["crosslingual"] if sample == 0 else [],
        }
        for sample, text in enumerate([CHINESE, ARABIC, HOSTILE, ""])
    ]
    prompt = {"id": "q1", "instruction": "怎样睡得更好？", "english": "How to sleep better?", "candidates": candidates}
    own = {
        "name": "Chinese",
        "verdict": {
            "decision": "go with",
            "settings": ["pair.filters=[truncated]"],
            "remarks": [{"text": "a warning", "warning": True}],
        },
        "tokens": [{"id": "q1", "sample": 0, "chosen": True, "pieces": [("怎\x1b[31m", 1.5), (" ■", -0.5)]}],
        "modes": {"crosslingual": mode},
        "agreement": [],
        "prompts": [prompt],
    }
    names: dict[str, Any] = {"iteration": 1, "policy": "p", "reference": "r", "formula": "f", "reward": "crosslingual"}
    names["cost"] = {"seconds": 90.0, "sampled": 0.012, "scored": 0.03, "labelled": 120}
    return {**names, "languages": {"zh": own}}


def test_the_terminal_shows_each_text_below_its_figures_and_cuts_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    monkeypatch.setattr(certificateview, "console", console)
    certificateview.show(found(), 1)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    lines = printed.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert "\x1b" not in printed
    assert "\x07" not in printed
    best, empty = (
        lines.index(f"   2         2.00 +{len(HOSTILE):>8}  zh    wrong language"),
        lines.index("     (empty)"),
    )
    assert lines[best + 1].strip() == "bold [31mred ]0;title | pipe new line"
    assert f"     {ARABIC}" in lines
    cut = next(line for line in lines if line.rstrip().endswith("…"))
    assert cut.strip()[:-1] in CHINESE
    assert best < lines.index(f"     {ARABIC}") < lines.index(cut) < empty
    assert "0.012" in printed
    assert "q1, chosen, +1.0 nats: 怎 [31m ■" in printed
    assert "20/20/–" in printed
    verdict = lines.index("Chinese (zh): go with pair.filters=[truncated]")
    assert lines[verdict + 1] == "  ! a warning"
    assert lines[verdict + 2].startswith("It took 1:30: 1.2 % of the responses that the iteration samples")


def test_no_text_breaks_a_markdown_table() -> None:
    lines = certificateview.markdown(found()).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert "bold \\[31mred \\]0;title \\| pipe new line" in rows[-4]
    assert ARABIC in rows[-3]
    assert {line.replace("\\|", "").count("|") for line in rows[-5:]} == {8}
    assert "- ! a warning" in lines

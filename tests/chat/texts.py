"""Texts on which encoders are compared."""

import json
from collections.abc import Iterator
from pathlib import Path

QUICKSTART = Path(__file__).parents[2] / "xlr" / "recipes" / "quickstart" / "prompts"


def texts() -> Iterator[str]:
    """The shipped instructions, in all their languages, and a few odd ones."""
    yield from ("¿Qué tal?", "Hello\nworld", "你好，世界", "नमस्ते", "x", "1 + 1 = 2?", "🙂 {{ x }} <b>&amp;</b>")
    for file in sorted(QUICKSTART.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["instruction"]

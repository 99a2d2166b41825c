"""docs/troubleshooting.md quotes messages that xlr really prints."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OTHERS = "## Words of other programs"


@cache
def messages() -> str:
    """All string literals of the package, placeholders as a mark, and the job scripts."""
    found = [file.read_text(encoding="utf-8") for file in (ROOT / "slurm").iterdir()]
    for file in (ROOT / "xlr").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def quotations() -> Iterator[str]:
    """What stands in backticks in the first column of the tables, up to the words of other programs."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| (.+?) \| ", text.partition(OTHERS)[0], re.MULTILINE):
        yield from re.findall(r"`([^`]+ [^`]+)`", row)  # single words are names of keys


@pytest.mark.parametrize("quotation", list(quotations()))
def test_a_quoted_message_is_one_of_ours(quotation: str) -> None:
    lacking = [part for part in quotation.split("…") if part.strip() not in messages()]
    assert not lacking, "the message changed: quote its new words in docs/troubleshooting.md"

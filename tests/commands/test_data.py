"""`xlr data` shows what is read of every source, as the model reads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import Cli, assert_refused


def test_every_source_is_shown_with_its_first_row(
    cli: Cli, tiny_tree: dict[str, Any], write_config: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    rows = [
        {"id": 1, "lang": "en", "instruction": "Why is [bold]the[/bold] sky blue?", "topic": "physics"},
        {"id": 2, "lang": "en", "instruction": "Who wrote it?"},
        {"id": 3, "lang": "en", "instruction": "Who wrote it?"},
        {"id": 2, "lang": "es", "instruction": "¿Quién lo escribió?"},
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tiny_tree["prompts"] = {"path": str(tmp_path / "all.jsonl")}
    found = cli("data", write_config(tiny_tree), COLUMNS="140", PYTHONIOENCODING="utf-8")
    assert found.returncode == 0, found.stderr
    lines = [" ".join(line.replace("│", "").split()) for line in found.stdout.splitlines()]
    assert any(line.startswith("prompts English 3 100 %") and line.endswith(" 1") for line in lines), found.stdout
    assert any(line.startswith("prompts Spanish 1 33 %") for line in lines)
    assert any(line.startswith("evaluate.prompts Spanish 2 100 %") for line in lines)
    assert any(line.startswith("evaluate.preferences English ") for line in lines)
    assert "Why is [bold]the[/bold] sky blue?" in found.stdout
    assert "¿Quién lo escribió?" in found.stdout
    assert "\nprompts: xlr does not read the columns topic.\n" in found.stdout
    assert "evaluate.prompts: xlr does not read" not in found.stdout
    tiny_tree["prompts"]["columns"] = {"instruction": "question"}
    assert_refused(cli("data", write_config(tiny_tree)), "no column 'question' (it has id, lang, instruction, topic)")

"""The reference pages in docs/ match the code."""

import shutil
import subprocess
import sys
from pathlib import Path

GENERATOR = Path(__file__).parents[1] / "docs" / "generate.py"
PAGES = ("configuration.md", "commands.md")


def test_the_reference_pages_are_up_to_date() -> None:
    result = subprocess.run([sys.executable, GENERATOR, "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_example_is_rendered_from_the_numbers_of_its_run(tmp_path: Path) -> None:
    for part in ("examples.py", "examples"):
        source = GENERATOR.with_name(part)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / part)
    page = tmp_path / "examples" / "quickstart.html"
    page.unlink()
    subprocess.run([sys.executable, tmp_path / "examples.py"], capture_output=True, check=True)
    text = page.read_text(encoding="utf-8")
    assert "English 98 %, Spanish 78 %, German 98 %, French 95 % of the pairs" in " ".join(text.split())
    assert str(tmp_path) not in text
    assert {path.suffix for path in page.with_suffix("").rglob("*") if path.is_file()} <= {
        ".json",
        ".jsonl",
        ".yaml",
        ".parquet",
    }


def test_a_stale_page_is_named_and_written_anew(tmp_path: Path) -> None:
    copy = tmp_path / "generate.py"
    copy.write_text(GENERATOR.read_text(encoding="utf-8"), encoding="utf-8")
    for name in PAGES:
        (tmp_path / name).write_text("old\n", encoding="utf-8")
    stale = subprocess.run([sys.executable, copy, "--check"], capture_output=True, text=True)
    assert stale.returncode == 1
    assert stale.stdout.count("is stale: run `python docs/generate.py`") == 2
    assert (tmp_path / "commands.md").read_text(encoding="utf-8") == "old\n"
    subprocess.run([sys.executable, copy], capture_output=True, check=True)
    for name in PAGES:
        assert (tmp_path / name).read_bytes() == GENERATOR.with_name(name).read_bytes()

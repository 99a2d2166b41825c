"""The links of the Markdown files lead somewhere; `.ci/links` finds those that do not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def check(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / ".ci" / "links"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_link_of_the_repository_leads_somewhere() -> None:
    found = check(ROOT)
    assert (found.returncode, found.stdout) == (0, "links: all are good\n")


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("[a](missing.md)", "no such file"),
        ("![a](missing.svg)", "no such file"),
        ('<img src="missing.svg" alt="">', "no such file"),
        ("[a](other.md#missing)", "other.md has no such heading"),
        ("[a](#missing)", "README.md has no such heading"),
        ("[a](../elsewhere.md)", "leads out of the repository"),
        ("[a][1]\n\n[1]: missing.md", "no such file"),
    ],
)
def test_a_broken_link_is_named(tmp_path: Path, link: str, problem: str) -> None:
    (tmp_path / "README.md").write_text(f"# Title\n\n{link}\n", encoding="utf-8")
    (tmp_path / "other.md").write_text("# Another\n")
    found = check(tmp_path)
    assert found.returncode == 1
    assert found.stdout.startswith("README.md: ")
    assert problem in found.stdout


@pytest.mark.parametrize(
    "link",
    [
        "[a](other.md)",
        "[a](other.md#the-xlr-run-command-and-a_setting)",
        "[a](other.md#again-1)",
        "[a](other.md#π-and-größe)",
        "[a](folder/)",
        "[a](https://example.org/missing)",
        "`[a](missing.md)`",
        "```\n[a](missing.md)\n# no heading\n```",
    ],
)
def test_other_links_are_good(tmp_path: Path, link: str) -> None:
    (tmp_path / "README.md").write_text(f"# Title\n\n{link}\n", encoding="utf-8")
    headings = ("The `xlr run` command, and a_setting!", "Again", "Again", "π and Größe")
    (tmp_path / "other.md").write_text("".join(f"# {heading}\n\n" for heading in headings), encoding="utf-8")
    (tmp_path / "folder").mkdir()
    assert check(tmp_path).returncode == 0


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
)
def test_the_tests_and_modules_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"`((?:tests|xlr|docs|slurm|ds_configs|benchmarks)/[\w./-]+)`", (ROOT / page).read_text("utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []

"""`.ci/changelog`: a change to xlr/ touches CHANGELOG.md, or a commit message says that it needs no entry."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

SCRIPT = Path(__file__).parents[1] / ".ci" / "changelog"
WHO = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
ENVIRONMENT = os.environ | WHO | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


def run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def commit(folder: Path, *files: str, message: str = "A change") -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        with (folder / file).open("a", encoding="utf-8") as target:
            target.write("a line\n")
    assert run(folder, "git", "add", ".").returncode == 0
    assert run(folder, "git", "commit", "--quiet", f"--message={message}").returncode == 0


def verdict(folder: Path) -> tuple[int, str]:
    found = run(folder, str(SCRIPT))
    return found.returncode, found.stdout + found.stderr


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository on main with one commit."""
    folder = tmp_path / "repository"
    folder.mkdir()
    assert run(folder, "git", "init", "--quiet", "--initial-branch=main").returncode == 0
    commit(folder, "xlr/commands/cli.py", "CHANGELOG.md")
    return folder


def test_a_change_to_the_package_alone_is_refused(repository: Path) -> None:
    commit(repository, "xlr/commands/cli.py")
    code, said = verdict(repository)
    assert code == 1
    assert "Unreleased" in said
    assert "Changelog: none" in said


@pytest.mark.parametrize("files", [("xlr/commands/cli.py", "CHANGELOG.md"), ("README.md",)])
def test_an_entry_or_no_change_to_the_package_passes(repository: Path, files: tuple[str, ...]) -> None:
    commit(repository, *files)
    assert verdict(repository)[0] == 0


def test_a_commit_message_may_say_that_no_entry_is_needed(repository: Path) -> None:
    commit(repository, "xlr/commands/cli.py", message="A comment\n\nChangelog: none")
    assert verdict(repository)[0] == 0


def test_a_branch_is_compared_with_where_it_left_main(repository: Path) -> None:
    run(repository, "git", "switch", "--quiet", "--create", "branch")
    commit(repository, "xlr/commands/cli.py")
    commit(repository, "README.md")
    assert verdict(repository)[0] == 1
    commit(repository, "CHANGELOG.md")
    assert verdict(repository)[0] == 0


def test_what_main_got_meanwhile_does_not_count(repository: Path) -> None:
    run(repository, "git", "switch", "--quiet", "--create", "branch")
    commit(repository, "README.md")
    run(repository, "git", "switch", "--quiet", "main")
    commit(repository, "xlr/other.py")
    run(repository, "git", "switch", "--quiet", "branch")
    assert verdict(repository)[0] == 0


def test_the_first_commit_passes(repository: Path) -> None:
    assert verdict(repository) == (0, "changelog: the history holds no earlier commit, nothing to compare\n")


def test_a_shallow_clone_passes(repository: Path, tmp_path: Path) -> None:
    commit(repository, "xlr/commands/cli.py")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", "--depth=1", f"file://{repository}", str(clone))
    assert verdict(clone) == (0, "changelog: the history holds no earlier commit, nothing to compare\n")


def test_a_folder_without_history_passes(tmp_path: Path) -> None:
    assert verdict(tmp_path) == (0, "changelog: no commits here, nothing to compare\n")

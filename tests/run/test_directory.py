"""The layout of a run directory."""

import os
import re
import sys
from pathlib import Path

import pytest

from xlr.commands import cli
from xlr.errors import UserError
from xlr.run.directory import RunDir


def test_a_run_directory_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    assert run.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o703, 0o702])
def test_a_directory_to_which_every_user_can_write_is_refused_and_stays_as_it_is(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "some run"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UserError, match=re.escape(f"run `chmod o-w '{folder}'`")):
        RunDir(folder).create()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o775, 0o2770])
def test_a_directory_of_a_group_is_used(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)
    RunDir(folder).create()
    assert folder.stat().st_mode & 0o7777 == mode


@pytest.mark.usefixtures("same_signals")
def test_what_a_command_writes_is_private_whatever_the_users_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.umask(0)
    monkeypatch.setattr(sys, "argv", ["xlr", "init", str(tmp_path / "mine")])
    with pytest.raises(SystemExit):
        cli.main()
    assert (tmp_path / "mine.yaml").stat().st_mode & 0o777 == 0o600
    RunDir(tmp_path / "run").create()
    assert (tmp_path / "run" / "logs").stat().st_mode & 0o777 == 0o700

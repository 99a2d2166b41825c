"""The layout of a run directory."""

from pathlib import Path

from xlr.run.directory import RunDir


def test_a_run_directory_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    assert run.path.stat().st_mode & 0o077 == 0

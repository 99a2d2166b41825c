"""Private temporary folders: nobody else can enter them, and those of killed processes are removed."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from xlr.cluster import scratch
from xlr.cluster.scratch import PrivateFolder


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short folder for temporary files instead of the machine's."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="b"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def age(folder: Path) -> None:
    os.utime(folder, (time.time() - 3600,) * 2)


def test_only_this_user_can_enter_and_the_name_is_new(base: Path) -> None:
    one, two = PrivateFolder(), PrivateFolder()
    assert one.path.parent == two.path.parent == base
    assert one.path != two.path
    assert one.path.stat().st_mode & 0o777 == 0o700
    (one.path / "file").write_text("x")
    one.remove()
    two.remove()
    assert not list(base.iterdir())


def test_the_folder_of_a_killed_process_is_removed_at_the_next_start_but_not_that_of_a_living_one(base: Path) -> None:
    code = "import sys, tempfile, time; tempfile.tempdir = sys.argv[1]; from xlr.cluster.scratch import PrivateFolder; "
    code += "print(PrivateFolder().path, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, str(base)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    folder = Path(process.stdout.readline().strip())
    age(folder)
    PrivateFolder().remove()
    assert folder.is_dir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    PrivateFolder().remove()
    assert not folder.exists()


def test_new_and_foreign_things_stay(base: Path, tmp_path: Path) -> None:
    new, link, file, other, own = (base / name for name in ("xlr-new", "xlr-link", "xlr-file", "other", "xlr-own"))
    for folder in (new, other, own):
        folder.mkdir()
    for folder in (new, other):
        (folder / ".xlr-lock").touch()
    target = tmp_path / "target"
    target.mkdir()
    (target / ".xlr-lock").touch()
    link.symlink_to(target)
    file.write_text("x")
    os.utime(link, (0, 0), follow_symlinks=False)
    for path in (other, own, file, target):
        age(path)
    scratch.remove_stale(base)
    assert all(path.exists() for path in (new, link, file, other, own, target))


def test_a_link_in_place_of_the_lock_is_not_followed(base: Path, tmp_path: Path) -> None:
    folder, target = base / "xlr-a", tmp_path / "target"
    folder.mkdir()
    target.touch()
    (folder / ".xlr-lock").symlink_to(target)
    age(folder)
    scratch.remove_stale(base)
    assert folder.is_dir()


def test_a_long_base_is_replaced_since_sockets_need_short_paths(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 10)))
    folder = PrivateFolder()
    assert folder.path.parent == Path("/tmp")
    folder.remove()


def test_a_file_system_without_locks_is_used_and_never_tidied(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    folder = PrivateFolder()
    age(folder.path)
    scratch.remove_stale(base)
    assert folder.path.is_dir()
    folder.remove()

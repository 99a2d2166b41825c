"""Files are written atomically."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xlr.run.files import atomic_path, write_text


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_text(target, "old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "old"


FILL = """
import sys
from pathlib import Path
from xlr.errors import UserError
from xlr.records import PreferenceLogps
from xlr.run.rows import write_rows
try:
    rows = [PreferenceLogps("en", str(number), "multilingual", number / 2, 0.0, 0.0, 0.0) for number in range(100_000)]
    write_rows(Path(sys.argv[1]) / "rows.parquet", PreferenceLogps, rows)
except UserError as error:
    print(error, sorted(Path(sys.argv[1]).iterdir()))
"""


def test_a_full_disk_is_an_error_with_a_remedy_and_leaves_nothing(tmp_path: Path) -> None:
    """Needs root, to mount a file system of 64 kB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = f'mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mounted, "-", sys.executable, "-c", FILL, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "rows.parquet: cannot be written, no space left on device; free space and start again" in result.stdout
    assert result.stdout.rstrip().endswith("[]")

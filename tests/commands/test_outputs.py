"""`xlr logs`: nothing in a log steers the terminal, and new output is shown as it comes."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import INTERRUPTIBLE, Cli
from tests.waiting import wait_until
from xlr import configfile
from xlr.settings.config import Config

HOSTILE = (
    b"\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m\n"  # title, clear screen, colour
    b"\x9b2J\xc2\x9b2J \xff\xfe \x00 \x08\x08 \x7f\n"  # C1 codes as a byte and as UTF-8, no UTF-8, NUL, backspaces
    b"Loading:  50%|#\rLoading: 100%|##\n"
    b"\xe2\x80\xaetxt.exe \xe2\x80\xa8 \xc2\xbfpor qu\xc3\xa9?\ttab\n"  # right to left, line separator
    b"the end" + b"x" * 200_000 + b"\x1b[2J"
)


@pytest.fixture
def log(tiny_tree: dict[str, Any], tmp_path: Path) -> Path:
    """The log of a run's first stage."""
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / "config.yaml").write_text(configfile.dump(Config.model_validate(tiny_tree)), encoding="utf-8")
    (run / "logs" / "generate-1.log").write_bytes(HOSTILE)
    return run / "logs" / "generate-1.log"


def test_a_hostile_log_prints_text_lines_and_tabs_only(log: Path, cli_here: Cli) -> None:
    result = cli_here("logs", log.parents[1], "generate")
    assert result.returncode == 0, result.stderr
    assert not re.search("[^\t\n -~\u00a1-\u2027\u2030-\u2065\u206a-\ufffd]", result.stdout)
    lines = result.stdout.split("\n")
    assert lines[0] == "\\u001b]0;title\\u0007\\u001b[2J\\u001b[31mred\\u001b[0m"
    assert lines[2:4] == ["Loading:  50%|#", "Loading: 100%|##"]
    assert "¿por qué?\ttab" in lines[4]
    assert lines[-1] == f"the end{'x' * 200_000}\\u001b[2J"


def test_new_output_is_followed(log: Path, tmp_path: Path) -> None:
    log.write_bytes(b"one\n")
    command = [*INTERRUPTIBLE, sys.executable, "-m", "xlr", "logs", str(log.parents[1]), "generate", "--follow"]
    printed = tmp_path / "printed"
    with printed.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE)
    wait_until(lambda: printed.read_text(encoding="utf-8") == "one\n", "the first line")
    with log.open("ab") as file:
        file.write(b"two\x1b\n")
    wait_until(lambda: printed.read_text(encoding="utf-8") == "one\ntwo\\u001b\n", "the second line")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)

"""Shows the output of stages. Nothing in it can steer the terminal."""

import subprocess
from functools import partial
from pathlib import Path

from xlr.foreign.texts import shown

_LONGEST = 1 << 16  # characters printed at once; a line may be longer


def show(log: Path, follow: bool) -> None:
    """Print a log with control characters written out; a carriage return, as in progress bars, begins a new line.

    Args:
        follow: wait for more at its end, until Ctrl-C.
    """
    command = ["tail", "--lines=+1", *(["--follow"] if follow else []), "--", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", errors="replace") as tail:
        assert tail.stdout is not None  # it is a pipe
        try:
            for text in iter(partial(tail.stdout.readline, _LONGEST), ""):
                print(shown(text), end="", flush=follow)
        finally:
            tail.terminate()

"""SIGTERM and SIGUSR1 mean "the time is up": Slurm sends them before a preemption and before the time limit.

Training saves at the next step and ends; other stages end at once, since each finished piece is a file already.
Both end with `EXIT_CODE`, by which a launcher tells "start me again" from a failure.
"""

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(BaseException):
    """Ended on request with everything worth keeping saved. As KeyboardInterrupt, no `except Exception` stops it."""


class Request:
    """Whether a signal asked this process to save and end."""

    def __init__(self) -> None:
        self.received = False

    def listen(self) -> "Request":
        """From now on the signals are noted, and no longer end the process."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def end_on_signals() -> None:
    """From now on the signals raise `Preempted` wherever this process is."""
    for number in SIGNALS:
        signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Preempted(f"ended by {signal.Signals(number).name}; what is finished is kept: start again to go on")


@contextlib.contextmanager
def passed_on(children: Sequence["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """While the block runs, the signals go to the children instead."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

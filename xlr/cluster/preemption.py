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


_received: list[int] = []


def end_on_signals() -> None:
    """From now on the signals raise `Preempted` wherever this process is."""
    for number in SIGNALS:
        signal.signal(number, _raise)


def said(error: BaseException) -> str | None:
    """What to say if this error ends the process because of a signal, else None.

    Libraries turn `Preempted` into errors of their own (Ray does), and what this process works with may have got the
    signal too.
    """
    if isinstance(error, Preempted):
        return str(error)
    return _ended_by(_received[0]) if _received and isinstance(error, Exception) else None


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise Preempted(_ended_by(number))


def _ended_by(number: int) -> str:
    return f"ended by {signal.Signals(number).name}; what is finished is kept: start again to go on"


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

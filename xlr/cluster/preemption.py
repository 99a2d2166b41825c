"""SIGTERM and SIGUSR1 ask a process to end. Slurm sends them before it preempts a job and before the time limit.

Training saves a checkpoint after the current step and ends. Other stages end at once, since each finished piece is
already a file. Both exit with `EXIT_CODE`, which tells a launcher to start the process again.
"""

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
AGAIN_CODE = 76
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(BaseException):
    """The process ends on request, with its work saved. As with KeyboardInterrupt, `except Exception` misses it."""

    code = EXIT_CODE


class StartAgain(Preempted):
    """A rank ends because all ranks have to start again. Whoever started them does that."""

    code = AGAIN_CODE


class Request:
    """Records whether a signal asked this process to save and end."""

    def __init__(self) -> None:
        self.received = False

    def listen(self) -> "Request":
        """Install handlers that record the signals instead of ending the process."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True


_received: list[int] = []


def end_on_signals() -> None:
    """Install handlers that raise `Preempted`, whatever the process is doing."""
    for number in SIGNALS:
        signal.signal(number, _raise)


def said(error: BaseException) -> str | None:
    """The message for an error that a signal caused; None for other errors.

    After a signal, other exceptions count too: libraries such as Ray convert `Preempted` into their own errors, and
    child processes may have received the signal as well.
    """
    if isinstance(error, Preempted):
        return str(error)
    return _ended_by(_received[0]) if _received and isinstance(error, Exception) else None


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise Preempted(_ended_by(number))


def _ended_by(number: int) -> str:
    return f"ended by {signal.Signals(number).name}; finished work is kept: start again to continue"


@contextlib.contextmanager
def passed_on(children: Sequence["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """Forward the signals to child processes while the block runs."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Calls functions in threads and waits for each only so long."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_thread(function: Callable[[], Result]) -> "Future[Result]":
    """Call a function in a thread that does not keep the process from ending: an endpoint may never answer."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # raised again where the result is read
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


class Patience:
    """Waits for the first of several calls to end, but for none longer than `seconds`."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._begun: dict[Future[Any], float] = {}

    def wait(self, running: "Mapping[Future[Result], Any]") -> "set[Future[Result]]":
        """The calls that have ended.

        Raises:
            TimeoutError: the oldest call does not end.
        """
        now = time.monotonic()
        self._begun = {future: self._begun.get(future, now) for future in running}
        left = min(self._begun.values()) + self._seconds - now
        done = wait(running, timeout=max(0.0, left), return_when=FIRST_COMPLETED).done
        if not done:
            raise TimeoutError
        return done

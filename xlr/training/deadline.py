"""The end of the Slurm job that a training runs in: it saves while a save still ends before."""

import os
import time
from collections.abc import Callable

_SAFETY = 1.5  # times a step and a save, which do not always take the same time
_SPARE_SECONDS = 30  # until the job's end, beside: ranks end, and the job script requeues
_SAVE_RATE = 4e8  # bytes a second, until a save was measured: a slow file system


class Deadline:
    """Says when a training must save and end, because another step and a save might not end before the job does.

    Slurm's signal before the time limit comes at a fixed time, which may be too late for a large checkpoint.

    Args:
        checkpoint_bytes: the size of a checkpoint.
        now: gives seconds since 1970.
    """

    def __init__(self, checkpoint_bytes: float, now: Callable[[], float] = time.time):
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        self._end = int(end) if end.isdecimal() else None
        self._now = now
        self._longest_step = 0.0
        self.save_seconds = checkpoint_bytes / _SAVE_RATE
        """Of the last save; before the first, an estimate."""

    def near(self, step_seconds: float) -> bool:
        """Whether no further step fits, after one that took so long, its evaluation included."""
        self._longest_step = max(self._longest_step, step_seconds)
        if self._end is None:
            return False
        return self._end - self._now() < _SAFETY * (self._longest_step + self.save_seconds) + _SPARE_SECONDS

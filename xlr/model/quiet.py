"""Keeps known messages of libraries out of a log. They are about the libraries' own code; every other one is shown."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

_CAPTURED = "py.warnings"  # the logger that Python gives its warnings to, as `FILE:LINE: CATEGORY: MESSAGE`

# Logger -> how its known messages begin.
_KNOWN = {
    _CAPTURED: (
        r"[^:]*/torch/distributed/\w+\.py:\d+: FutureWarning: `torch\.distributed\.\w+` is deprecated"
        r"|[^:]*/transformers/\w+\.py:\d+: FutureWarning: `gradient_checkpointing_enable` is deprecated"
        r"|[^:]*\.py:\d+: FutureWarning: `past_key_values` is deprecated"  # of the caller's file
    ),
    "DeepSpeed": r"Setting accelerator to CPU\.",  # metrics and manifests name the device
}


class _Known(logging.Filter):
    """Drops the messages of a logger that begin like the pattern, and writes each of them to a file once."""

    def __init__(self, pattern: str, kept: Path | None):
        super().__init__()
        self._pattern = re.compile(pattern)
        self._kept = kept
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is to be shown."""
        text = record.getMessage().rstrip()
        if not self._pattern.match(text):
            return True
        if self._kept and text not in self._seen:
            self._seen.add(text)
            with self._kept.open("a", encoding="utf-8") as file:
                file.write(f"{text}\n")
        return False


@contextlib.contextmanager
def quiet(kept: Path | None = None) -> Iterator[None]:
    """While the block runs, show neither known messages of libraries nor the progress bars of transformers.

    Args:
        kept: a file to which known messages are added.
    """
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    captured, shown = logging.getLogger(_CAPTURED), logging.StreamHandler()
    shown.terminator = ""  # the text of a warning ends with a line feed
    captured.addHandler(shown)
    captured.propagate = False
    logging.captureWarnings(True)
    filters = {logging.getLogger(name): _Known(pattern, kept) for name, pattern in _KNOWN.items()}
    for logger, known in filters.items():
        logger.addFilter(known)
    try:
        yield
    finally:
        for logger, known in filters.items():
            logger.removeFilter(known)
        logging.captureWarnings(False)
        captured.propagate = True
        captured.removeHandler(shown)
        if bars:
            transformers_logging.enable_progress_bar()

"""Bad values for tests that try many: of every type, extreme, and unprintable."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from xlr.errors import UserError
from xlr.foreign.texts import control_in

SMALL = settings(deadline=5000, max_examples=120, suppress_health_check=list(HealthCheck))

TEXTS = st.sampled_from(
    [
        "", " ", "\u200b", "\ufeff\u2060", "\x00", "\x1b[31m", "a\nb", "\ud800", "\u202eabc", "[/red]", ":smile:",
        "true", "no", "1e-5", "010", "0x_", "=", "<<", "~", "~nobody/x", "null", "{recipes}/x", "{x}", "%s", "'", '"',
        "x" * 5000, "é" * 200, "../..", "a" * 300, "-1", "NaN", ".inf", "2024-01-01", "١", "😀",
        "http://u:p@h/v1", "{port} '",
    ]
)  # fmt: skip
NUMBERS = st.sampled_from(
    [
        0,
        1,
        2,
        -1,
        5,
        64,
        2**31,
        2**32,
        2**63,
        2**64,
        10**24,
        -(10**18),
        0.5,
        1.0,
        -0.0,
        1e-300,
        1e300,
        5e-324,
        0.999999999,
    ]
) | st.floats(allow_nan=True, allow_infinity=True)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.sampled_from("abc"), inner, max_size=3),
)


def refused(action: Callable[[], Any], name: str) -> str | None:
    """The message with which an action refuses its input, or None if it accepts; any other exception fails the test."""
    try:
        action()
    except UserError as error:
        message = str(error)
        assert name in message, "the message names the file"
        assert control_in(message) is None, "the message is one line"
        assert len(message) < 3000, "the message is short"
        return message
    return None


def junk_json(value: Any) -> str:
    """A value as Python writes JSON, with NaN and halves of surrogate pairs where it has them."""
    return json.dumps(value, ensure_ascii=True)


def no_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Paths of everything but a regular file, by the words with which they are refused."""
    paths = {kind: folder / f"{kind}.{suffix}" for kind in ("missing", "pipe", "folder", "device", "loop")}
    os.mkfifo(paths["pipe"])
    paths["folder"].mkdir()
    paths["device"].symlink_to("/dev/zero")
    paths["loop"].symlink_to(paths["loop"])
    return {
        "cannot be read .No such file": paths["missing"],
        "is a pipe": paths["pipe"],
        "is a folder": paths["folder"],
        "or a device; name a regular file": paths["device"],
        "cannot be read .Too many levels of symbolic links": paths["loop"],
        "cannot be read .File name too long": folder / f"{'x' * 300}.{suffix}",
        "cannot be read .embedded null": folder / f"\0.{suffix}",
    }

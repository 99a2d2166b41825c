"""Numbers as the report shows them, and the interval of a share."""

import math
from collections.abc import Sequence


def number(value: float | None, form: str = ".1f", scale: int = 1) -> str:
    """A number in a format; empty for None."""
    return "" if value is None else format(value * scale, form)


def interval(ends: Sequence[float], form: str = ".1f") -> str:
    """The low and the high end of an interval."""
    low, high = ends
    return f"{low:{form}} … {high:{form}}"


def share_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that was observed in `count` cases. Source: Wilson 1927, the score interval."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)

"""Numbers as the report shows them."""

from collections.abc import Sequence


def number(value: float | None, form: str = ".1f", scale: int = 1) -> str:
    """A number in a format; empty for None."""
    return "" if value is None else format(value * scale, form)


def interval(ends: Sequence[float], form: str = ".1f") -> str:
    """The low and the high end of an interval."""
    low, high = ends
    return f"{low:{form}} … {high:{form}}"

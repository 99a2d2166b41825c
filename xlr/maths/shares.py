"""How certain an observed share is, how certain a change of it is, and several tests at once."""

import math
from collections.abc import Sequence

Z = 1.959964  # the standard normal distribution is within +-Z with 95 %


def share_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that was observed in `count` cases.

    Source: Wilson 1927, the score interval.
    """
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def difference_interval(before: float, count_before: int, after: float, count_after: int) -> tuple[float, float]:
    """The 95 % interval of the change from one share to another, each observed in its own number of cases.

    The cases count as independent; if both shares are of the same cases, the interval is rather too wide.

    Source: Newcombe 1998, Interval estimation for the difference between independent proportions, method 10.
    """
    low_before, high_before = share_interval(before, count_before)
    low_after, high_after = share_interval(after, count_after)
    difference = after - before
    return (
        difference - math.hypot(after - low_after, high_before - before),
        difference + math.hypot(high_after - after, before - low_before),
    )


def two_sided_p(value: float, standard_error: float) -> float:
    """The probability of a value at least as far from 0, if 0 were true, in a normal distribution."""
    if standard_error == 0:
        return float(value == 0)
    return math.erfc(abs(value) / standard_error / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted so that one in twenty such families has a false finding at 5 %.

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = largest
    return adjusted

"""Is one model better than another on the same prompts? Intervals and p-values of mean paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xlr.maths.shares import Z, two_sided_p

# Cases that are added, as Agresti and Min add them, so that the interval is right for few cases, too.
_ADDED = (-1.0, 1.0, 0.0, 0.0)
_WEIGHT = 0.5


@dataclass(frozen=True)
class Paired:
    """The mean of differences that lie between -1 and 1."""

    value: float
    low: float
    high: float
    """The ends of its 95 % interval."""
    p: float
    """The probability of a mean at least as far from 0, if 0 were true."""
    count: int


def mean_difference(differences: Sequence[float]) -> Paired:
    """The mean of paired differences, each from -1 to 1, with its interval.

    Differences of -1, 0 and 1 are those of two shares of the same cases; their interval is the one of the source.

    Source: Agresti and Min 2005, Simple improved confidence intervals for comparing matched proportions.
    """
    count = len(differences)
    added = count + _WEIGHT * len(_ADDED)
    middle = sum(differences) / added  # the added cases cancel each other
    squares = sum(one * one for one in differences) + _WEIGHT * sum(one * one for one in _ADDED)
    error = math.sqrt((squares / added - middle * middle) / added)
    low, high = max(middle - Z * error, -1.0), min(middle + Z * error, 1.0)
    return Paired(sum(differences) / max(count, 1), low, high, two_sided_p(middle, error), count)

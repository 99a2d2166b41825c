"""What another iteration is likely to bring, judged by what the iterations before it brought."""

from collections.abc import Sequence


def expected_gain(gains: Sequence[float]) -> float:
    """The gain of the next iteration, if the gains go on shrinking by the same factor.

    After one gain, it may bring as much again. After a loss, it is expected to lose as much again.

    Args:
        gains: of each iteration so far, in the order of the iterations; at least one.
    """
    last = gains[-1]
    before = gains[-2] if len(gains) > 1 else 0.0
    return last * min(1.0, last / before) if last > 0 and before > 0 else last

"""Counts the rows that a stage leaves out, by language and reason."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from xlr.records import RowKey

# lang -> reason -> number of rows
DroppedCounts = dict[str, dict[str, int]]


class Dropped:
    """Collects the rows that a stage leaves out."""

    def __init__(self) -> None:
        self.keys: set[RowKey] = set()
        self._reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, reason: str, keys: Iterable[RowKey]) -> None:
        """Record rows that are left out for a reason. The first reason of a row counts."""
        for key in keys:
            if key not in self.keys:
                self.keys.add(key)
                self._reasons[key[0]][reason] += 1

    def counts(self) -> DroppedCounts:
        """Number of rows left out, by language and reason."""
        return {lang: dict(sorted(reasons.items())) for lang, reasons in sorted(self._reasons.items())}

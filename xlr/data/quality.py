"""Flaws of responses. They are counted for every language; filters can exclude flawed responses from pairs.

By default nothing is excluded, as in the paper. Empty responses are dropped before scoring.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from xlr.detection import is_in
from xlr.records import Score
from xlr.settings.pairconfig import Flaw

REPEATED = 0.5
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: mixes all bits


def repetition(token_ids: Sequence[int], n: int = 4) -> float:
    """Share of a response's token n-grams that repeat an earlier one, in [0, 1); near 1 for a text that loops.

    Source: seq-rep-n of arXiv 1908.04319, section 6.
    """
    import numpy as np

    ids, count = np.asarray(token_ids, np.uint64), len(token_ids) - n + 1
    if count < 1:
        return 0.0
    # The driver computes this for every response. Sorting one number for each n-gram takes a fifth of the time of a set
    # of tuples. Two n-grams of a response get the same number with a probability below 1e-13.
    ngrams = np.zeros(count, np.uint64)
    for offset in range(n):
        ngrams = ngrams * _MULTIPLIER + ids[offset : offset + count]
    ngrams.sort()
    return float(np.count_nonzero(ngrams[1:] == ngrams[:-1])) / count


def flaws(rows: Sequence[Score]) -> list[set[Flaw]]:
    """The flaws of each row.

    A duplicate has the same text as an earlier row of the same prompt and language. A text whose language could not be
    detected does not count as `wrong_language`, so no row of a language does that no detector knows.
    """
    found: list[set[Flaw]] = []
    seen: set[tuple[str, str, str]] = set()
    for row in rows:
        checks: dict[Flaw, bool] = {
            "truncated": row.finish_reason == "length",
            "repeated": row.repetition > REPEATED,
            "wrong_language": row.detected_lang != "" and not is_in(row.detected_lang, row.lang),
            "duplicate": (row.lang, row.id, row.response) in seen,
        }
        seen.add((row.lang, row.id, row.response))
        found.append({flaw for flaw, present in checks.items() if present})
    return found


def count_flaws(rows: Sequence[Score]) -> dict[str, int]:
    """Number of rows with each flaw; a row can have several flaws."""
    return _count(flaws(rows))


def without(rows: Sequence[Score], filters: Collection[Flaw]) -> tuple[list[Score], dict[str, int]]:
    """The rows without the given flaws, and the number of rows with each of them; a row can have several."""
    found = flaws(rows)
    kept = [row for row, own in zip(rows, found, strict=True) if own.isdisjoint(filters)]
    return kept, _count(own.intersection(filters) for own in found)


def penalised(rows: Sequence[Score], penalties: Mapping[Flaw, float]) -> list[Score]:
    """The rows with lower rewards where they have flaws.

    Args:
        penalties: flaw -> nats; those of several flaws add up.
    """
    if not penalties:
        return list(rows)
    return [
        replace(row, reward=row.reward - sum(penalties[flaw] for flaw in own & penalties.keys()))
        for row, own in zip(rows, flaws(rows), strict=True)
    ]


def _count(found: Iterable[set[Flaw]]) -> dict[str, int]:
    return dict(sorted(Counter(flaw for own in found for flaw in own).items()))

"""What is plainly wrong with a response: counted for every language, and left out of pairs on request.

Nothing is left out by default, as in the paper; empty responses never reach scoring.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from xlr.config import Flaw
from xlr.records import Score

REPEATED = 0.5


def repetition(token_ids: Sequence[int], n: int = 4) -> float:
    """Share of a response's n-grams of tokens that stand in it earlier already, in [0, 1).

    A text that goes round in a circle is near 1. Source: seq-rep-n of arXiv 1908.04319, section 6.
    """
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def flaws(rows: Sequence[Score]) -> list[set[Flaw]]:
    """The flaws of each row; a duplicate has the text of an earlier row of the same prompt.

    Where the language of a text cannot be told, it counts as right.
    """
    found: list[set[Flaw]] = []
    seen: set[tuple[str, str, str]] = set()
    for row in rows:
        signs: dict[Flaw, bool] = {
            "truncated": row.finish_reason == "length",
            "repeated": row.repetition > REPEATED,
            "wrong_language": row.detected_lang not in ("", row.lang),
            "duplicate": (row.lang, row.id, row.response) in seen,
        }
        seen.add((row.lang, row.id, row.response))
        found.append({flaw for flaw, present in signs.items() if present})
    return found


def count_flaws(rows: Sequence[Score]) -> dict[str, int]:
    """How many rows have each flaw; a row may have several."""
    return _count(flaws(rows))


def without(rows: Sequence[Score], filters: Collection[Flaw]) -> tuple[list[Score], dict[str, int]]:
    """The rows that have none of the flaws, and how many rows each flaw took out; a row may count several times."""
    found = flaws(rows)
    kept = [row for row, own in zip(rows, found, strict=True) if own.isdisjoint(filters)]
    return kept, _count(own.intersection(filters) for own in found)


def _count(found: Iterable[set[Flaw]]) -> dict[str, int]:
    return dict(sorted(Counter(flaw for own in found for flaw in own).items()))

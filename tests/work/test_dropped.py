"""Rows that are left out are counted by language and reason."""

from xlr.work.dropped import Dropped


def test_rows_are_counted_by_language_and_reason() -> None:
    dropped = Dropped()
    dropped.add("too long", [("es", "a", "0"), ("en", "a", "1"), ("es", "b", "0")])
    dropped.add("empty", [("es", "c", "0")])
    assert dropped.counts() == {"en": {"too long": 1}, "es": {"empty": 1, "too long": 2}}
    assert dropped.keys == {("es", "a", "0"), ("en", "a", "1"), ("es", "b", "0"), ("es", "c", "0")}

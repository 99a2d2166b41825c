"""What a stage computes: shards of rows, each planned on its own, so that memory does not grow with their number."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from xlr.maths.batching import Batch
from xlr.records import RowKey, Task
from xlr.run.rows import Row

Plan = TypeVar("Plan", covariant=True)
Other = TypeVar("Other")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard(Generic[Plan]):
    """Rows that are planned, computed and kept together. The stage keeps the finished ones as one file each."""

    name: str
    digest: str
    """A digest of which rows it has."""
    totals: Counter[str]
    """Number of rows by language, as far as it is known before planning."""
    plan: Callable[[], Plan]
    """Reads the rows' inputs and decides how they are computed. Called in a thread, and only if rows are missing."""
    rank: int = 0
    """Shards of a lower rank are computed first."""

    def replanned(self, change: Callable[[Plan], Other]) -> "Shard[Other]":
        """The same rows with another plan, which is made from this one."""
        return Shard(self.name, self.digest, self.totals, lambda: change(self.plan()), self.rank)


def keys_digest(keys: Iterable[Sequence[RowKey]]) -> str:
    """A digest of keys of rows, given item by item, in their order."""
    digest = hashlib.sha256()
    for own in keys:
        digest.update(json.dumps(own).encode())
    return digest.hexdigest()


def whole(plan: Other, keys: Sequence[Sequence[RowKey]]) -> list[Shard[Other]]:
    """Everything as one shard; none if there are no rows.

    Args:
        keys: the keys of the rows that each item becomes.
    """
    if not keys:
        return []
    return [Shard("all", keys_digest(keys), Counter(key[0] for own in keys for key in own), lambda: plan)]


def by_language(items: Sequence[Item], key: Callable[[Item], RowKey]) -> list[Shard[list[Item]]]:
    """The items of each language as one shard, in the order in which the languages appear.

    Args:
        key: the key of the row that an item becomes.
    """
    own: dict[str, list[Item]] = {}
    for item in items:
        own.setdefault(key(item)[0], []).append(item)
    return [
        Shard(lang, keys_digest([key(item)] for item in of_lang), Counter({lang: len(of_lang)}), partial(list, of_lang))
        for lang, of_lang in own.items()
    ]


@dataclass(frozen=True, eq=False)
class Work(Generic[Row]):
    """Items for the workers, their batches and tasks, and how results become rows."""

    keys: Callable[[int], Sequence[RowKey]]
    """The keys of the rows that an item becomes. A key begins with its language."""
    batches: Sequence[Batch]
    """Indices of the items of each batch. Every item is in one batch."""
    task: Callable[[Batch], Task]
    """The task of a batch."""
    to_rows: Callable[[Batch, Any], list[Row]]
    """Converts a batch's result to rows, in the order of the batch's items. Called in a thread."""
    num_tokens: Callable[[Batch, Sequence[Row]], int]
    """Counts the tokens of a finished batch, for the progress view."""
    places: Callable[[int], Sequence[int]] | None = None
    """Where the rows of an item stand in the shard; by default rows are in the order of the items."""

    @property
    def cut(self) -> str:
        """A digest of which rows are in which batch."""
        return keys_digest([key for item in batch for key in self.keys(item)] for batch in self.batches)

    def languages(self, batch: Batch) -> Counter[str]:
        """Number of rows of each language in a batch's result."""
        return Counter(key[0] for item in batch for key in self.keys(item))

    @property
    def totals(self) -> Counter[str]:
        """Number of rows of each language in all results."""
        return sum((self.languages(batch) for batch in self.batches), Counter[str]())

    def size(self, batch: Batch) -> int:
        """Number of rows in a batch's result."""
        return sum(len(self.keys(item)) for item in batch)

    @property
    def place_of_row(self) -> list[int]:
        """Where each row stands in the shard, for the rows in the order of the batches."""
        of_item = self.places or (lambda item: [item] * len(self.keys(item)))
        return [place for batch in self.batches for item in batch for place in of_item(item)]

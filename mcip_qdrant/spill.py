"""Very many names in bounded memory: in batches, in order, or known again. Beyond a limit they go to a temporary SQLite file.

An archive of 10^8 images must not need gigabytes to be listed. The file has no name and vanishes with the process.
"""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

_T = TypeVar("_T")

IN_MEMORY: Final = 10_000
_PAGE_CACHE_KIB: Final = 4096


def batched(items: Iterable[_T], size: int) -> Iterator[tuple[_T, ...]]:
    """Tuples of up to `size` items, read no sooner than they are asked for (`itertools.batched` of Python 3.12)."""
    iterator = iter(items)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


def _temporary_table() -> sqlite3.Connection:
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    # Nothing here outlives the process, so nothing has to survive a crash.
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    database.execute(f"PRAGMA cache_size = -{_PAGE_CACHE_KIB}")
    database.execute("CREATE TABLE items (item BLOB PRIMARY KEY) WITHOUT ROWID")
    database.execute("BEGIN")
    return database


class SortedNames:
    """Distinct byte strings, given back in sorted order."""

    def __init__(self) -> None:
        self._few: list[bytes] = []
        self._many: sqlite3.Connection | None = None

    def add(self, name: bytes) -> None:
        """Keep one name."""
        self._few.append(name)
        if len(self._few) > IN_MEMORY:
            if self._many is None:
                self._many = _temporary_table()
            self._spill(self._many)

    def _spill(self, many: sqlite3.Connection) -> None:
        many.executemany("INSERT OR IGNORE INTO items VALUES (?)", ((name,) for name in sorted(self._few)))
        self._few.clear()

    def __iter__(self) -> Iterator[bytes]:
        """All names in order."""
        if self._many is None:
            yield from sorted(self._few)
            return
        self._spill(self._many)
        for (name,) in self._many.execute("SELECT item FROM items ORDER BY item"):
            yield name


class SeenNames:
    """Which byte strings have come by before."""

    def __init__(self) -> None:
        self._few: set[bytes] = set()
        self._many: sqlite3.Connection | None = None

    def add(self, name: bytes) -> bool:
        """Note one name; True if it is new."""
        if self._many is None:
            if name in self._few:
                return False
            self._few.add(name)
            if len(self._few) > IN_MEMORY:
                self._many = _temporary_table()
                self._many.executemany("INSERT INTO items VALUES (?)", ((_digest(item),) for item in self._few))
                self._few.clear()
            return True
        return self._many.execute("INSERT OR IGNORE INTO items VALUES (?)", (_digest(name),)).rowcount == 1

    def __contains__(self, name: bytes) -> bool:
        if self._many is None:
            return name in self._few
        return self._many.execute("SELECT 1 FROM items WHERE item = ?", (_digest(name),)).fetchone() is not None


def _digest(name: bytes) -> bytes:
    return hashlib.blake2b(name, digest_size=16).digest()

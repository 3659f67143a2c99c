"""Cosine similarities of many queries to many database vectors, a bounded piece at a time.

Nothing here ever holds more than one block of database rows and one block of similarities, so a database of a million
vectors needs no more memory than the block size, as long as its rows are read from a file (`rows.StoredRows`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

DEFAULT_BLOCK_BYTES = 192 * 1024 * 1024
"""Bytes of one block of similarities; a few times this is what an evaluation needs besides the vectors themselves."""

_DATABASE_BLOCK_BYTES = 64 * 1024 * 1024
_NORM_TOLERANCE = 1e-3


class Rows(Protocol):
    """Float32 `[N, D]` vectors, L2 norm 1, read by slices: a NumPy array, or `rows.StoredRows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, D)`."""
        ...

    def __getitem__(self, part: slice, /) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class Block:
    """Similarities of queries `start … start + len(values)` to the whole database: float32 `[B, N]`, to be changed freely."""

    start: int
    values: NDArray[np.float32]


def similarity_blocks(queries: Rows, database: Rows, *, block_bytes: int = DEFAULT_BLOCK_BYTES) -> Iterator[Block]:
    """Cosines of every query to every database row, a block of queries at a time. A block is only valid until the next one.

    Database rows that are equal in every bit get equal similarities in every bit, wherever they stand: matrix products may
    round a row differently at another place, and ties would depend on the order of the database.

    Raises:
        ValueError: empty, of different width, not finite, or not of unit norm.
    """
    check_rows(queries, "queries")
    if database is not queries:
        check_rows(database, "database")
    if queries.shape[1] != database.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, the database has {database.shape[1]}")
    count = database.shape[0]
    at_once = max(1, min(queries.shape[0], block_bytes // (4 * count)))
    buffer = np.empty((at_once, count), dtype=np.float32)
    later, first = duplicates(database)
    for start in range(0, queries.shape[0], at_once):
        asked = queries[start : start + at_once]
        values = buffer[: len(asked)]
        for begin, rows in blocks(database):
            np.matmul(asked, rows.T, out=values[:, begin : begin + len(rows)])
        if len(later):
            values[:, later] = values[:, first]
        yield Block(start, values)


def blocks(rows: Rows) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row number, rows) over the whole of `rows`, at most 64 MiB at a time."""
    at_once = max(1, _DATABASE_BLOCK_BYTES // (4 * rows.shape[1]))
    for start in range(0, rows.shape[0], at_once):
        yield start, rows[start : start + at_once]


def check_rows(rows: Rows, name: str) -> None:
    """Refuse what would give a number without meaning.

    Raises:
        ValueError: empty, not float32 `[N, D]`, not finite, or not of unit norm (within 0.001); the first such row is named.
    """
    if len(rows.shape) != 2 or 0 in rows.shape:
        raise ValueError(f"{name}: expected float32 [N, D] with at least one row, not {list(rows.shape)}")
    for start, part in blocks(rows):
        if part.dtype != np.float32:
            raise ValueError(f"{name}: expected float32, not {part.dtype}")
        norms = np.sqrt(np.einsum("nd,nd->n", part, part, dtype=np.float32))
        wrong = ~(np.abs(norms - 1.0) <= _NORM_TOLERANCE)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"{name}: row {start + row} has norm {norms[row]:.4f}; vectors must be of unit norm")


def duplicates(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that repeat an earlier row bit for bit: their numbers, and the number of the first such row, both int64 `[M]`."""
    hashes = np.concatenate([_row_hashes(part) for _, part in blocks(rows)])
    _, group, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(sizes[group] > 1)
    seen: dict[bytes, int] = {}
    later: list[int] = []
    earlier: list[int] = []
    for number in candidates.tolist():
        original = seen.setdefault(rows[number : number + 1].tobytes(), number)
        if original != number:
            later.append(number)
            earlier.append(original)
    return np.array(later, dtype=np.int64), np.array(earlier, dtype=np.int64)


def _row_hashes(part: NDArray[np.float32]) -> NDArray[np.uint64]:
    # Multiply and add modulo 2^64; equal hashes are only candidates, whose bytes are compared.
    weights = np.random.default_rng(0).integers(1, 1 << 63, size=part.shape[1], dtype=np.uint64) | np.uint64(1)
    words = np.ascontiguousarray(part).view(np.uint32)
    hashes: NDArray[np.uint64] = np.einsum("nd,d->n", words, weights, dtype=np.uint64)
    return hashes

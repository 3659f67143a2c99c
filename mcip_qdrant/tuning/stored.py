"""Vectors that are computed once and kept in a file; a killed computation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning.processes import Processes
from mcip_qdrant.tuning.state import save_text

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[int]], Iterator[Vectors]]

CHUNK: Final = 1024
# What `base.done` says of a chunk.
_MISSING: Final = 0
_WHOLE: Final = 1
_WITH_FAILURES: Final = 2


@dataclass(frozen=True, slots=True)
class Stored:
    """`vectors` float32 `[N, D]`, read from disk as needed, and the rows of it that failed: int64, sorted, zeros there."""

    vectors: Vectors
    failed: NDArray[np.int64]


def digest(parts: Iterable[str]) -> str:
    """SHA-256 over texts, each with its length, so that no two lists share one."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", errors="surrogateescape")
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()


def stored_vectors(
    base: Path,
    identity: str,
    *,
    count: int,
    dimensions: int,
    encode: Encode,
    together: Processes,
    on_items: Callable[[int], object] = lambda _items: None,
) -> Stored:
    """Vectors of `count` items, computed chunk by chunk by all processes together, unless the file has them.

    Items that failed are tried again at each call: a read error need not last.

    Args:
        base: path without suffix: `base.npy` holds the vectors, `base.done` one byte per chunk, `base.json` whose they are.
        identity: digest of everything that the vectors depend on; a file of another identity is replaced.
        count: number of items N.
        dimensions: length D.
        encode: gives the rows of the item numbers it gets, in order, in batches: float32 `[b, D]`, zeros for a failure.
        together: the processes that share the work; they see one file system.
        on_items: told how many items were just finished or were there already.

    Raises:
        TuningError: the disk is full or not writable, or a vector is not finite. Finished chunks stay.
    """
    vectors_path, done_path = base.with_suffix(".npy"), base.with_suffix(".done")
    try:
        if together.first:
            _prepare(base, identity, count, dimensions)
        together.wait()
        vectors = open_memmap(vectors_path, mode="r")
        done = np.fromfile(done_path, dtype=np.uint8)
        missing = [(int(n), _missing(vectors, done, n)) for n in range(together.rank, len(done), together.world_size)]
        rows = [row for _, own in missing for row in own.tolist()]
        on_items(sum(min(CHUNK, count - number * CHUNK) for number, _ in missing) - len(rows))
        # Written by plain writes, not through the map: a full disk is an error there, and SIGBUS here.
        with vectors_path.open("r+b") as vectors_file, done_path.open("r+b") as done_file:
            batches = encode(rows) if rows else iter(())
            for number, own, made in _by_chunk(
                [item for item in missing if len(item[1])], batches, dimensions, on_items
            ):
                _check_finite(made, vectors_path)
                _write_rows(vectors_file, vectors.offset, own, made)
                # Only now: a chunk that is marked is on disk.
                failed = not made.any(axis=1).all()
                _write_at(done_file, number, bytes([_WITH_FAILURES if failed else _WHOLE]))
        together.wait()
        # Mapped again: other machines may have written.
        vectors = open_memmap(vectors_path, mode="r")
        done = np.fromfile(done_path, dtype=np.uint8)
        left = [_missing(vectors, done, number) for number in np.flatnonzero(done != _WHOLE).tolist()]
    except OSError as exc:
        raise TuningError(f"{vectors_path}: {exc.strerror or exc}") from exc
    return Stored(np.asarray(vectors), np.concatenate([*left, np.empty(0, dtype=np.int64)]))


def _prepare(base: Path, identity: str, count: int, dimensions: int) -> None:
    described = json.dumps({"identity": identity, "count": count, "dimensions": dimensions})
    note = base.with_suffix(".json")
    if note.exists() and note.read_text(encoding="utf-8") == described:
        return
    note.unlink(missing_ok=True)
    open_memmap(base.with_suffix(".npy"), mode="w+", dtype=np.float32, shape=(count, dimensions)).flush()
    base.with_suffix(".done").write_bytes(bytes(-(-count // CHUNK)))
    # Last: with the note there, the other two are known to be complete.
    save_text(described, note)


def _missing(vectors: Vectors, done: NDArray[np.uint8], number: int) -> NDArray[np.int64]:
    """Rows of a chunk that are still to be computed."""
    rows = np.arange(number * CHUNK, min(len(vectors), (number + 1) * CHUNK), dtype=np.int64)
    if done[number] == _MISSING:
        return rows
    return rows[~vectors[rows].any(axis=1)] if done[number] == _WITH_FAILURES else rows[:0]


def _by_chunk(
    wanted: Sequence[tuple[int, NDArray[np.int64]]],
    batches: Iterator[Vectors],
    dimensions: int,
    on_items: Callable[[int], object],
) -> Iterator[tuple[int, NDArray[np.int64], Vectors]]:
    """(chunk, its rows, their vectors) as soon as the batches hold them all."""
    pending = np.empty((0, dimensions), dtype=np.float32)
    for number, rows in wanted:
        while len(pending) < len(rows):
            batch = next(batches)
            on_items(len(batch))
            # A batch of failures alone does not know the length of a vector.
            made = batch if batch.shape[1] else np.zeros((len(batch), dimensions), dtype=np.float32)
            pending = np.concatenate([pending, made])
        yield number, rows, pending[: len(rows)]
        pending = pending[len(rows) :]


def _check_finite(vectors: Vectors, path: Path) -> None:
    if not np.isfinite(vectors).all():
        raise TuningError(
            f"{path}: the model gives vectors that are not finite: its weights are broken, or --precision is too low"
        )


def _write_rows(stream: BinaryIO, header: int, rows: NDArray[np.int64], made: Vectors) -> None:
    # Neighbours in one write: most chunks are new as a whole.
    for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
        _write_at(stream, header + int(rows[run[0]]) * made[0].nbytes, made[run].tobytes())


def _write_at(stream: BinaryIO, place: int, data: bytes) -> None:
    stream.seek(place)
    stream.write(data)
    stream.flush()
    os.fsync(stream.fileno())

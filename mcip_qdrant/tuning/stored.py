"""Vectors that are computed once and kept in a file; a killed computation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning.processes import Processes
from mcip_qdrant.tuning.state import save_text

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[int]], Iterator[Vectors]]

CHUNK: Final = 1024


def digest(parts: Iterable[str]) -> str:
    """SHA-256 over texts, each with its length, so that no two lists share one."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", errors="surrogateescape")
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()


def file_states(paths: list[Path]) -> list[str]:
    """Name, size and time of each file: what tells whether a stored vector still holds."""
    states = []
    for path in paths:
        try:
            found = path.stat()
            states.append(f"{path}\0{found.st_size}\0{found.st_mtime_ns}")
        except OSError:
            states.append(str(path))
    return states


def stored_vectors(
    base: Path,
    identity: str,
    *,
    count: int,
    dimensions: int,
    encode: Encode,
    together: Processes,
    on_items: Callable[[int], object] = lambda _items: None,
) -> Vectors:
    """Vectors of `count` items, computed chunk by chunk by all processes together, unless the file has them.

    Args:
        base: path without suffix: `base.npy` holds the vectors, `base.done` one byte per finished chunk, `base.json` whose they are.
        identity: digest of everything that the vectors depend on; a file of another identity is replaced.
        count: number of items N.
        dimensions: length D.
        encode: gives the rows of the item numbers it gets, in order, in batches: float32 `[b, D]`.
        together: the processes that share the work; they see one file system.
        on_items: told how many items were just finished or were there already.

    Returns:
        float32 `[N, D]`, read from disk as needed.

    Raises:
        TuningError: the disk is full or not writable.
    """
    vectors_path, done_path = base.with_suffix(".npy"), base.with_suffix(".done")
    try:
        if together.first:
            _prepare(base, identity, count, dimensions)
        together.wait()
        vectors = open_memmap(vectors_path, mode="r+", dtype=np.float32, shape=(count, dimensions))
        done = np.memmap(done_path, mode="r+", dtype=np.uint8)
        mine = range(together.rank, len(done), together.world_size)
        on_items(sum(min(CHUNK, count - chunk * CHUNK) for chunk in mine if done[chunk]))
        missing = [chunk for chunk in mine if not done[chunk]]
        rows = [row for chunk in missing for row in range(chunk * CHUNK, min(count, (chunk + 1) * CHUNK))]
        _fill(vectors, done, missing, encode(rows) if rows else iter(()), on_items)
        together.wait()
    except OSError as exc:
        raise TuningError(f"{vectors_path}: {exc.strerror or exc}") from exc
    return np.asarray(open_memmap(vectors_path, mode="r"))


def _prepare(base: Path, identity: str, count: int, dimensions: int) -> None:
    described = json.dumps({"identity": identity, "count": count, "dimensions": dimensions})
    note = base.with_suffix(".json")
    if note.exists() and note.read_text(encoding="utf-8") == described:
        return
    note.unlink(missing_ok=True)
    open_memmap(base.with_suffix(".npy"), mode="w+", dtype=np.float32, shape=(count, dimensions)).flush()
    base.with_suffix(".done").write_bytes(bytes(max(1, -(-count // CHUNK))))
    # Last: with the note there, the other two are known to be complete.
    save_text(described, note)


def _fill(
    vectors: NDArray[np.float32],
    done: NDArray[np.uint8],
    missing: Sequence[int],
    batches: Iterator[Vectors],
    on_items: Callable[[int], object],
) -> None:
    pending = np.empty((0, vectors.shape[1]), dtype=np.float32)
    left = list(missing)
    for batch in batches:
        rows = batch if batch.shape[1] else np.zeros((len(batch), vectors.shape[1]), dtype=np.float32)
        pending = np.concatenate([pending, rows])
        on_items(len(rows))
        while left:
            start = left[0] * CHUNK
            wanted = min(CHUNK, len(vectors) - start)
            if len(pending) < wanted:
                break
            vectors[start : start + wanted] = pending[:wanted]
            _flush(vectors)
            # Only now: a chunk that is marked is on disk.
            done[left.pop(0)] = 1
            _flush(done)
            pending = pending[wanted:]


def _flush(array: NDArray[np.float32] | NDArray[np.uint8]) -> None:
    if isinstance(array, np.memmap):
        array.flush()

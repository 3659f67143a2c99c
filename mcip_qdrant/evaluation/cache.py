"""Embeddings on disk, so that a second evaluation of the same model and images only reads.

One SQLite file per `space_id`, kind and variant. A row is found by a digest of what was embedded and carries a digest of
itself: a row that does not match is no row, a file that SQLite cannot read is set aside, a cache that cannot be used at
all (disk full, read-only) costs time and nothing else. Killing the process at any moment leaves whole rows.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_FORMAT = 1
_AT_ONCE = 500
_WAIT_S = 30


class VectorCache:
    """Vectors of one width by key, in one SQLite file. Not shared between threads; processes may share the file."""

    def __init__(self, path: Path, width: int) -> None:
        """Open or create. A file that is not SQLite's, or of another format, is set aside as `NAME.damaged`."""
        self._path = path
        self._width = width
        self._database: sqlite3.Connection | None = None
        with self._or_go_without():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                self._database = _opened(path)
            except sqlite3.DatabaseError as exc:
                if isinstance(exc, sqlite3.OperationalError):
                    raise
                self._set_aside(exc)
                self._database = _opened(path)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Those vectors that are there, whole and of the right width: float32 `[width]` each."""
        found: dict[bytes, NDArray[np.float32]] = {}
        with self._or_go_without():
            for start in range(0, len(keys), _AT_ONCE):
                found.update(self._get(keys[start : start + _AT_ONCE]))
        return found

    def put(self, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
        """Store vectors, float32 `[width]` each, all or none."""
        rows = [(key, data, _digest(key, data)) for key, data in _as_bytes(vectors)]
        with self._or_go_without():
            if self._database is not None:
                with self._database as transaction:
                    transaction.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _get(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, NDArray[np.float32]]]:
        if self._database is None:
            return
        marks = ",".join("?" * len(keys))
        # Only question marks are put into the statement.
        rows = self._database.execute(f"SELECT key, vector, digest FROM vectors WHERE key IN ({marks})", keys)  # noqa: S608
        for key, data, digest in rows:
            if isinstance(data, bytes) and len(data) == 4 * self._width and digest == _digest(key, data):
                yield key, np.frombuffer(data, dtype="<f4")

    @contextmanager
    def _or_go_without(self) -> Iterator[None]:
        """A cache that fails is closed, and work goes on without it."""
        try:
            yield
        except (sqlite3.Error, OSError) as exc:
            logger.warning("embedding cache %s cannot be used (%s); going on without it", self._path, exc)
            self.close()
            if isinstance(exc, sqlite3.DatabaseError) and not isinstance(exc, sqlite3.OperationalError):
                self._set_aside(exc)

    def _set_aside(self, why: Exception) -> None:
        damaged = self._path.with_name(f"{self._path.name}.damaged")
        logger.warning(
            "embedding cache %s is damaged (%s); it is kept as %s and made anew", self._path, why, damaged.name
        )
        try:
            self._path.replace(damaged)
        except FileNotFoundError:  # another process was faster
            return


def image_key(path: Path, made_by: str) -> bytes:
    """Identity of an image file: real path, size and modification time, and the software that decodes it.

    Raises:
        OSError: the file is not there.
    """
    real = path.resolve(strict=True)
    state = real.stat()
    digest = hashlib.sha256(f"{made_by}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    digest.update(str(real).encode(errors="surrogateescape"))
    return digest.digest()


def text_key(text: str, made_by: str) -> bytes:
    """Identity of a text."""
    return hashlib.sha256(f"{made_by}\0{text}".encode()).digest()


def _opened(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_WAIT_S)
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in {0, _FORMAT}:
            raise sqlite3.DatabaseError(f"format {version}, expected {_FORMAT}")
        with database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL, digest BLOB NOT NULL)"
            )
            database.execute(f"PRAGMA user_version = {_FORMAT}")
    except sqlite3.Error:
        database.close()
        raise
    return database


def _as_bytes(vectors: Mapping[bytes, NDArray[np.float32]]) -> Iterable[tuple[bytes, bytes]]:
    for key, vector in vectors.items():
        yield key, vector.astype("<f4").tobytes()


def _digest(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(key + data, digest_size=16).digest()

"""Vectors that are written one after the other and stay on disk where they are too many for memory."""

from __future__ import annotations

import logging
import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.evaluation.similarity import Rows

logger = logging.getLogger(__name__)

MEMORY_BYTES = 512 * 1024 * 1024
"""Vectors of more bytes than this go to a temporary file."""


@dataclass(frozen=True)
class StoredRows:
    """Float32 `[N, D]` in a file without header. Read, not mapped: mapped pages would count as this process's memory.

    The file is closed with the object; a temporary one is gone then.
    """

    stream: BinaryIO
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        weakref.finalize(self, self.stream.close)

    def __getitem__(self, part: slice, /) -> NDArray[np.float32]:
        start, stop, step = part.indices(self.shape[0])
        if step != 1:
            raise ValueError("stored rows are read in order, without gaps")
        row_bytes = 4 * self.shape[1]
        wanted = max(0, stop - start) * row_bytes
        data = os.pread(self.stream.fileno(), wanted, start * row_bytes)
        if len(data) != wanted:
            raise ValueError("the file of vectors was cut short")
        return np.frombuffer(data, dtype="<f4").reshape(-1, self.shape[1])


class RowWriter:
    """Collects rows, in memory or in a temporary file."""

    def __init__(self, count: int, width: int, *, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES) -> None:
        """Prepare for at most `count` rows of `width` numbers.

        Args:
            folder: where a temporary file would lie; default, and where none can be made there: the system's.
        """
        self._width = width
        self._rows = 0
        self._memory = np.empty((count, width), dtype=np.float32) if 4 * count * width <= memory_bytes else None
        self._file: BinaryIO
        if self._memory is None:
            self._file = _temporary_file(folder)

    def add(self, rows: NDArray[np.float32]) -> None:
        """Append float32 `[B, width]`."""
        if self._memory is not None:
            self._memory[self._rows : self._rows + len(rows)] = rows
        else:
            self._file.write(np.ascontiguousarray(rows, dtype="<f4").data)
        self._rows += len(rows)

    def finish(self) -> Rows:
        """What was written: float32 `[rows, width]`."""
        if self._memory is not None:
            return self._memory[: self._rows]
        self._file.flush()
        return StoredRows(self._file, (self._rows, self._width))


def _temporary_file(folder: Path | None) -> BinaryIO:
    try:
        return cast("BinaryIO", tempfile.TemporaryFile(dir=folder))
    except OSError as exc:
        if folder is None:
            raise
        logger.warning("no temporary file can be made in %s (%s); the system's folder is used", folder, exc)
        return _temporary_file(None)

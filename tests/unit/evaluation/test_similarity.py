"""Similarities in pieces: the same numbers whatever the pieces, exact ties for exact duplicates, bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcip_qdrant.evaluation.rows import RowWriter, StoredRows
from mcip_qdrant.evaluation.similarity import blocks, duplicates, similarity_blocks


def unit(count: int, width: int, seed: int = 0) -> Any:
    vectors = np.random.default_rng(seed).normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def on_disk(vectors: Any, folder: Path) -> StoredRows:
    writer = RowWriter(*vectors.shape, folder=folder, memory_bytes=0)
    for start in range(0, len(vectors), 7):
        writer.add(vectors[start : start + 7])
    stored = writer.finish()
    assert isinstance(stored, StoredRows)
    return stored


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(4, 700))
def test_blocks_cover_every_pair_once(queries: int, database: int, block_bytes: int) -> None:
    asked, rows = unit(queries, 6, 1), unit(database, 6, 2)
    found = np.full((queries, database), np.nan, dtype=np.float32)
    for block in similarity_blocks(asked, rows, block_bytes=block_bytes):
        assert block.values.nbytes <= max(block_bytes, 4 * database)
        found[block.start : block.start + len(block.values)] = block.values
    np.testing.assert_allclose(found, asked @ rows.T, atol=1e-6)


def test_rows_on_disk_are_the_same_rows(tmp_path: Path) -> None:
    vectors = unit(50, 9)
    stored = on_disk(vectors, tmp_path)
    assert stored.shape == (50, 9)
    np.testing.assert_array_equal(stored[:], vectors)
    np.testing.assert_array_equal(stored[13:29], vectors[13:29])
    assert stored[60:70].shape == (0, 9)
    (from_disk,) = similarity_blocks(stored, stored)
    (from_memory,) = similarity_blocks(vectors, vectors)
    np.testing.assert_array_equal(from_disk.values, from_memory.values)
    assert list(tmp_path.iterdir()) == [], "a temporary file has no name"
    with pytest.raises(ValueError, match="without gaps"):
        stored[::2]


def test_rows_in_memory_hold_what_was_added() -> None:
    writer = RowWriter(10, 3)
    writer.add(unit(2, 3))
    writer.add(unit(1, 3, 5))
    np.testing.assert_array_equal(writer.finish()[:], np.concatenate([unit(2, 3), unit(1, 3, 5)]))


def test_duplicates_are_found_bit_for_bit() -> None:
    vectors = unit(300, 33)
    vectors[[40, 41, 299]] = vectors[[7, 7, 120]]
    nearly = np.nextafter(vectors[9], 1)
    vectors[200] = nearly
    later, first = duplicates(vectors)
    assert later.tolist() == [40, 41, 299]
    assert first.tolist() == [7, 7, 120]


def test_duplicates_are_exact_ties_wherever_they_stand() -> None:
    # Odd widths and lengths, so that matrix kernels take their edge paths for some of the copies.
    vectors = np.repeat(unit(37, 67), 9, axis=0)[np.random.default_rng(0).permutation(333)]
    later, first = duplicates(vectors)
    assert len(later) == 333 - 37
    for block in similarity_blocks(vectors, vectors, block_bytes=4 * 333 * 5):
        np.testing.assert_array_equal(block.values[:, later], block.values[:, first])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((0, 3), dtype=np.float32), "at least one row"),
        (np.zeros(3, dtype=np.float32), "at least one row"),
        (unit(3, 3).astype(np.float64), "expected float32"),
        (unit(3, 3) * np.float32(1.1), "row 0 has norm 1.1"),
        (np.where(np.arange(3)[:, None] == 1, np.nan, unit(3, 3)).astype(np.float32), "row 1 has norm nan"),
    ],
)
def test_vectors_that_mean_nothing_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(similarity_blocks(rows, unit(3, 3)))
    with pytest.raises(ValueError, match=message):
        next(similarity_blocks(unit(3, 3), rows))


def test_widths_must_agree() -> None:
    with pytest.raises(ValueError, match="3 dimensions, the database has 4"):
        next(similarity_blocks(unit(2, 3), unit(2, 4)))


def test_blocks_stay_small() -> None:
    vectors = unit(5000, 512)
    parts = list(blocks(np.tile(vectors, (8, 1))))
    assert max(part.nbytes for _, part in parts) <= 64 * 1024 * 1024
    assert sum(len(part) for _, part in parts) == 40_000


_MEASURE = """
import resource, sys
import numpy as np
from mcip_qdrant.evaluation.metrics import recall_at_k, full_ranking_map
from mcip_qdrant.evaluation.rows import RowWriter
from mcip_qdrant.evaluation.similarity import similarity_blocks

count, width = int(sys.argv[1]), 256
random = np.random.default_rng(0)
writer = RowWriter(count, width, memory_bytes=0)
for start in range(0, count, 5000):
    part = random.standard_normal((min(5000, count - start), width), dtype=np.float32)
    writer.add(part / np.linalg.norm(part, axis=1, keepdims=True))
database = writer.finish()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
best = max(float(block.values.max()) for block in similarity_blocks(database[:64], database, block_bytes=1 << 23))
assert 0.99 < best < 1.01
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_is_bounded_by_the_blocks_not_by_the_database() -> None:
    """160 MB of vectors on disk cost a 64 MiB block, a block of similarities, and a few bytes a row to find duplicates."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, "160000"], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 64 + 8 + 40

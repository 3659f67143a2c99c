"""The comparison that decides whether a graph is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Exported

from mcip_qdrant.errors import BundleError
from mcip_qdrant.golden import GoldenSet, compare


def _unit(rows: object) -> np.ndarray:  # type: ignore[type-arg]
    array = np.asarray(rows, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_cosine_by_hand() -> None:
    found = compare(_unit([[1, 0], [1, 1], [0, 2]]), _unit([[1, 0], [1, 0], [0, 1]]))
    assert found.minimum == pytest.approx(np.sqrt(0.5), abs=1e-6)
    assert found.worst_item == 1
    assert found.mean == pytest.approx((2 + np.sqrt(0.5)) / 3, abs=1e-6)
    assert found.max_abs_difference == pytest.approx(np.sqrt(0.5), abs=1e-6)


def test_nan_counts_as_the_worst() -> None:
    found = compare(np.array([[1, 0], [np.nan, 0]], np.float32), np.array([[1, 0], [1, 0]], np.float32))
    assert (found.minimum, found.worst_item) == (-1.0, 1)


def test_neighbours_are_compared_as_rankings() -> None:
    rng = np.random.default_rng(0)
    vectors = _unit(rng.normal(size=(40, 8)))
    assert compare(vectors, vectors).top10_agreement == 1.0
    assert compare(vectors, _unit(rng.normal(size=(40, 8)))).top10_agreement < 0.6


def test_the_set_in_a_bundle(clip: Exported) -> None:
    golden = clip.bundle.golden()
    assert len(golden.pictures) == len(golden.texts) == len(golden.pixels_sha256) == 64
    assert golden.image_vectors.shape == golden.text_vectors.shape == (64, 32)
    np.testing.assert_allclose(np.linalg.norm(golden.image_vectors, axis=1), 1, atol=1e-5)
    assert len(set(golden.texts)) == 64


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"garbage" * 100])
def test_damaged(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "golden.npz").write_bytes(content)
    with pytest.raises(BundleError, match="golden.npz"):
        GoldenSet.load(tmp_path)


def test_a_pickle_in_it_is_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", png=np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(BundleError):
        GoldenSet.load(tmp_path)

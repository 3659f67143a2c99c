"""Vectors that are computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mcip_qdrant.tuning import stored
from mcip_qdrant.tuning.processes import Processes
from mcip_qdrant.tuning.stored import digest, file_states, stored_vectors

ALONE = Processes(0, 1, torch.device("cpu"))
TRUTH = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


class Encoder:
    """Gives rows of TRUTH in uneven batches, remembers what it was asked, and may break."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self.asked: list[int] = []
        self._left = breaks_after

    def __call__(self, rows: Sequence[int]) -> Iterator[np.ndarray]:
        self.asked += rows
        for start in range(0, len(rows), 7):
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    raise KeyboardInterrupt
            yield TRUTH[list(rows[start : start + 7])]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "CHUNK", 10)


def _get(folder: Path, encoder: Encoder, identity: str = "a", **options: object) -> np.ndarray:
    counts: list[int] = []
    made = stored_vectors(
        folder / "v", identity, count=50, dimensions=3, encode=encoder, together=ALONE, on_items=counts.append
    )
    assert sum(counts) >= 50
    return made


def test_computed_once(tmp_path: Path) -> None:
    first, second = Encoder(), Encoder()
    assert (_get(tmp_path, first) == TRUTH).all()
    assert first.asked == list(range(50))
    assert (_get(tmp_path, second) == TRUTH).all()
    assert second.asked == []


def test_goes_on_after_the_last_whole_chunk(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _get(tmp_path, Encoder(breaks_after=4))  # 28 rows: two whole chunks
    rest = Encoder()
    assert (_get(tmp_path, rest) == TRUTH).all()
    assert rest.asked == list(range(20, 50))


def test_other_items_are_computed_anew(tmp_path: Path) -> None:
    _get(tmp_path, Encoder())
    other = Encoder()
    assert (_get(tmp_path, other, identity="b") == TRUTH).all()
    assert other.asked == list(range(50))


def test_processes_share_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "wait", lambda _self: None)
    encoders = [Encoder(), Encoder()]
    for rank, encoder in enumerate(encoders):
        together = Processes(rank, 2, torch.device("cpu"))
        made = stored_vectors(tmp_path / "v", "a", count=50, dimensions=3, encode=encoder, together=together)
    assert [row // 10 for row in encoders[0].asked[::10]] == [0, 2, 4]
    assert [row // 10 for row in encoders[1].asked[::10]] == [1, 3]
    assert (made == TRUTH).all()


def test_a_batch_of_failures_alone_becomes_zeros(tmp_path: Path) -> None:
    made = stored_vectors(
        tmp_path / "v",
        "a",
        count=4,
        dimensions=3,
        encode=lambda rows: iter([np.zeros((len(rows), 0), np.float32)]),
        together=ALONE,
    )
    assert (made == np.zeros((4, 3))).all()


def test_digests_tell_lists_and_files_apart(tmp_path: Path) -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    path = tmp_path / "x.jpg"
    path.write_bytes(b"1")
    before = file_states([path])
    path.write_bytes(b"22")
    assert file_states([path]) != before
    path.unlink()
    assert file_states([path]) == [str(path)]

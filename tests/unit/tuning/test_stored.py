"""Vectors that are computed once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning import stored
from mcip_qdrant.tuning.processes import Processes
from mcip_qdrant.tuning.stored import digest, stored_vectors

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
    assert sum(counts) == 50
    return made.vectors


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
    assert (made.vectors == TRUTH).all()


def test_a_batch_of_failures_alone_becomes_zeros(tmp_path: Path) -> None:
    made = stored_vectors(
        tmp_path / "v",
        "a",
        count=4,
        dimensions=3,
        encode=lambda rows: iter([np.zeros((len(rows), 0), np.float32)]),
        together=ALONE,
    )
    assert (made.vectors == np.zeros((4, 3))).all()
    assert made.failed.tolist() == [0, 1, 2, 3]


def test_what_failed_is_tried_again_and_nothing_else(tmp_path: Path) -> None:
    """Rows 3, 4 and 27 fail, then 4 alone, then none."""
    asked: list[list[int]] = []

    def get(failing: set[int]) -> list[int]:
        def encode(rows: Sequence[int]) -> Iterator[np.ndarray]:
            asked.append(list(rows))
            for start in range(0, len(rows), 7):
                chosen = list(rows[start : start + 7])
                yield np.where(np.isin(chosen, list(failing))[:, None], np.float32(0), TRUTH[chosen])

        made = stored_vectors(tmp_path / "v", "a", count=50, dimensions=3, encode=encode, together=ALONE)
        kept = np.setdiff1d(np.arange(50), list(failing))
        assert (made.vectors[kept] == TRUTH[kept]).all()
        return made.failed.tolist()

    assert get({3, 4, 27}) == [3, 4, 27]
    assert get({4}) == [4]
    assert get(set()) == []
    assert get(set()) == []
    assert asked[1:] == [[3, 4, 27], [4]]


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    def encode(rows: Sequence[int]) -> Iterator[np.ndarray]:
        yield np.full((len(rows), 3), np.nan, dtype=np.float32)

    with pytest.raises(TuningError, match="not finite"):
        stored_vectors(tmp_path / "v", "a", count=4, dimensions=3, encode=encode, together=ALONE)
    assert (_get(tmp_path, Encoder()) == TRUTH).all()


FULL = """
import sys
from pathlib import Path
import numpy as np, torch
from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning.processes import Processes
from mcip_qdrant.tuning.stored import stored_vectors
def encode(rows):
    for start in range(0, len(rows), 512):
        yield np.ones((len(rows[start:start + 512]), 64), np.float32)
try:
    stored_vectors(Path(sys.argv[1]) / "v", "a", count=20_000, dimensions=64, encode=encode,
                   together=Processes(0, 1, torch.device("cpu")))
except TuningError as exc:
    print(exc)
    sys.exit(7)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_an_error_with_a_name(tmp_path: Path) -> None:
    """5 MB of vectors for a disk of 2 MB. In a process of its own: what went wrong there once was a signal."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"NOT TESTED: the full disk needs mount: {mounted.stderr.strip()}")
    try:
        done = subprocess.run([sys.executable, "-c", FULL, disk], capture_output=True, text=True, check=False)
        assert done.returncode == 7, done
        assert f"{disk / 'v.npy'}: No space left on device" in done.stdout
        finished = np.fromfile(disk / "v.done", dtype=np.uint8)
        assert 0 < finished.sum() < 8  # chunks that did fit are kept
    finally:
        subprocess.run(["umount", disk], check=True)


def test_digests_tell_lists_apart() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"])

"""Paths and texts to vectors: in order, each failure accounted for, once only where a cache is given."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluation_support import MeanColours, write_classes

from mcip_qdrant.errors import Reason, SourceError
from mcip_qdrant.evaluation import embed, rows
from mcip_qdrant.evaluation.embed import Embedder, Watch
from mcip_qdrant.evaluation.preparation import prepare
from mcip_qdrant.evaluation.rows import StoredRows
from mcip_qdrant.picture import rgb_image


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("drawn") / "pictures", 10, 8)


@pytest.fixture
def pictures(tmp_path: Path, drawn: Path) -> list[Path]:
    """Eighty pictures that a test may damage."""
    return sorted(Path(shutil.copytree(drawn, tmp_path / "pictures")).rglob("*.jpg"))


def test_vectors_are_in_order_and_those_of_the_model(pictures: list[Path]) -> None:
    model = MeanColours()
    pixels = np.stack([prepare(rgb_image(path), model.preprocess, "open_clip") for path in pictures])
    steps: list[tuple[str, int]] = []
    moved: list[int] = []
    watch = Watch(lambda what, total: steps.append((what, total)), moved.append)
    found = Embedder(model, watch=watch).images(pictures)
    np.testing.assert_allclose(found.vectors[:], MeanColours().encode_pixels(pixels), atol=1e-6)
    assert found.kept.all()
    assert steps == [("images", 80)]
    assert sum(moved) == 80


def test_the_preparation_is_the_one_asked_for(pictures: list[Path]) -> None:
    model = MeanColours()
    squashed = Embedder(model, "squash-1.125").images(pictures)
    pixels = np.stack([prepare(rgb_image(path), model.preprocess, "squash-1.125") for path in pictures])
    np.testing.assert_allclose(squashed.vectors[:], MeanColours().encode_pixels(pixels), atol=1e-6)
    assert not np.allclose(squashed.vectors[:], Embedder(model).images(pictures).vectors[:], atol=1e-3)


def test_bad_images_are_left_out_and_named(pictures: list[Path]) -> None:
    pictures[3].write_bytes(b"nope")
    pictures[50].unlink()
    found = Embedder(MeanColours()).images(pictures)
    assert np.flatnonzero(~found.kept).tolist() == [3, 50]
    assert found.vectors.shape == (78, 12)
    assert [(failure.path, failure.reason) for failure in found.failures] == [
        (pictures[3], Reason.NOT_AN_IMAGE),
        (pictures[50], Reason.GONE),
    ]
    np.testing.assert_array_equal(found.vectors[3:4], Embedder(MeanColours()).images([pictures[4]]).vectors[:])


def test_a_model_that_gives_nan_is_a_failure_and_is_not_kept(pictures: list[Path], tmp_path: Path) -> None:
    class Broken(MeanColours):
        def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            vectors = super().encode_pixels(pixels)
            vectors[0] = np.nan
            return vectors

    found = Embedder(Broken(), cache=tmp_path / "cache").images(pictures)
    assert {failure.reason for failure in found.failures} == {Reason.NOT_FINITE}
    assert len(found.failures) == 3, "the first of each batch of 32"
    healthy = MeanColours()
    assert Embedder(healthy, cache=tmp_path / "cache").images(pictures).kept.all()
    assert healthy.images == 3


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="none of the 1 images can be read"):
        Embedder(MeanColours()).images([tmp_path / "gone.jpg"])


def test_the_cache_saves_the_work_of_the_same_space_preparation_and_file(pictures: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = Embedder(MeanColours(), cache=cache).images(pictures).vectors[:]
    again = MeanColours()
    np.testing.assert_array_equal(Embedder(again, cache=cache).images(pictures[::-1]).vectors[:], first[::-1])
    assert again.images == 0
    pictures[5].write_bytes(pictures[6].read_bytes())
    assert Embedder(again, cache=cache).images(pictures).kept.all()
    assert again.images == 1
    assert Embedder(again, "squash-1.125", cache).images(pictures).kept.all()
    assert again.images == 81
    again.variant = "another precision"
    assert Embedder(again, cache=cache).images(pictures[:10]).kept.all()
    assert again.images == 91
    again.space_id = "d0" * 32
    assert Embedder(again, cache=cache).images(pictures[:10]).kept.all()
    assert again.images == 101


_KILLED = """
import os, signal, sys
from pathlib import Path
from evaluation_support import MeanColours
from mcip_qdrant.evaluation.embed import Embedder

class Killed(MeanColours):
    def encode_pixels(self, pixels):
        if self.images >= 64:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_pixels(pixels)

Embedder(Killed(), cache=Path(sys.argv[1])).images([Path(name) for name in sys.argv[2:]])
"""


def test_a_killed_evaluation_keeps_what_it_had(pictures: list[Path], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path), *map(str, pictures)], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    again = MeanColours()
    found = Embedder(again, cache=tmp_path).images(pictures)
    assert again.images == len(pictures) - 64
    np.testing.assert_array_equal(found.vectors[:], Embedder(MeanColours()).images(pictures).vectors[:])


def test_a_damaged_cache_is_embedded_anew(pictures: list[Path], tmp_path: Path) -> None:
    first = Embedder(MeanColours(), cache=tmp_path).images(pictures).vectors[:]
    (file,) = tmp_path.rglob("*.sqlite")
    file.write_bytes(file.read_bytes()[:5000] + b"x" * 3000)
    again = MeanColours()
    np.testing.assert_array_equal(Embedder(again, cache=tmp_path).images(pictures).vectors[:], first)
    assert again.images > 0


def test_texts_are_encoded_once(tmp_path: Path) -> None:
    model = MeanColours()
    texts = ["a", "bb", "a"] * 200
    vectors = Embedder(model, cache=tmp_path).texts(texts)
    np.testing.assert_array_equal(vectors[:], MeanColours().encode_texts(texts))
    assert model.texts <= 6
    assert Embedder(model, cache=tmp_path).texts(texts).shape == (600, 12)
    assert model.texts <= 6
    with pytest.raises(SourceError, match="half a character"):
        Embedder(model).texts(["\ud800"])


def test_many_vectors_go_to_disk(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Embedder(MeanColours()).images(pictures).vectors[:]
    monkeypatch.setattr(
        embed, "RowWriter", lambda *size, folder: rows.RowWriter(*size, folder=folder, memory_bytes=100)
    )
    found = Embedder(MeanColours()).images(pictures)
    assert isinstance(found.vectors, StoredRows)
    np.testing.assert_array_equal(found.vectors[:], expected)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder that even root cannot write")
def test_a_cache_folder_that_cannot_be_written_costs_time_and_nothing_else(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors that are too many for memory go to the system's folder then."""
    monkeypatch.setattr(embed, "RowWriter", lambda *size, folder: rows.RowWriter(*size, folder=folder, memory_bytes=0))
    expected = Embedder(MeanColours()).images(pictures)
    found = Embedder(MeanColours(), cache=Path("/proc/sys/kernel")).images(pictures)
    assert isinstance(found.vectors, StoredRows)
    np.testing.assert_array_equal(found.vectors[:], expected.vectors[:])
    assert Embedder(MeanColours(), cache=Path("/proc/sys/kernel")).texts(["a"]).shape == (1, 12)

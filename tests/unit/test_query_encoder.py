"""`QueryEncoder` as a part of programs: mixes, batches, warnings, laziness, closing, pickles, threads."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Exported
from photos import photo_paths
from PIL import Image

from mcip_qdrant import (
    BundleError,
    ClosedError,
    DeviceError,
    ImageError,
    InvalidQueryError,
    QueryEncoder,
    TextCutWarning,
)
from mcip_qdrant.session import Session


@pytest.fixture(scope="module")
def encoder(clip: Exported) -> Iterator[QueryEncoder]:
    with QueryEncoder.open(clip.folder, device="cpu") as encoder:
        yield encoder


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what the graphs are given, in order; they run as ever."""
    shapes: list[tuple[int, ...]] = []
    run = Session.run

    def counted(self: Session, batch: Any) -> Any:
        shapes.append(batch.shape)
        return run(self, batch)

    monkeypatch.setattr(Session, "run", counted)
    return shapes


def test_a_mix_is_its_formula(encoder: QueryEncoder) -> None:
    path = photo_paths()[3]
    parts: list[Any] = [("a beach at night", 1.0), (path, 0.7), ("people", -0.4), (path.read_bytes(), 0.1)]
    v = [encoder.text("a beach at night"), encoder.image(path), encoder.text("people"), encoder.image(path)]
    s = sum(weight * one.astype(np.float64) for (_, weight), one in zip(parts, v, strict=True))
    mixed = encoder.mix(*parts)
    assert (mixed.dtype, mixed.shape) == (np.float32, (32,))
    assert isinstance(mixed.tolist()[0], float)
    np.testing.assert_allclose(mixed, s / np.linalg.norm(s), atol=2e-6)


def test_a_mix_of_one_is_the_thing_itself(encoder: QueryEncoder) -> None:
    path = photo_paths()[2]
    np.testing.assert_array_equal(encoder.mix(("the sea", 3)), encoder.text("the sea"))
    np.testing.assert_array_equal(encoder.mix((path, 0.2)), encoder.image(path))
    with path.open("rb") as stream, Image.open(path) as picture:
        np.testing.assert_array_equal(encoder.mix((stream, 1)), encoder.image(path))
        np.testing.assert_array_equal(encoder.mix((picture, 1)), encoder.image(path))


def test_many_mixes_are_one_batch_of_each_tower(encoder: QueryEncoder, runs: list[tuple[int, ...]]) -> None:
    path, other = photo_paths()[:2]
    mixes: list[list[Any]] = [[("a", 1)], [(path, 1), ("b", -0.5)], [(other, 2), (path, 1)], [("c", 1), ("d", 1)]]
    together = encoder.mixes(mixes)
    assert runs == [(4, 77), (3, 64, 64, 3)]
    for parts, vector in zip(mixes, together, strict=True):
        np.testing.assert_allclose(encoder.mix(*parts), vector, atol=1e-5)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "at least one part"),
        (["a"], "pair"),
        ([("a",)], "pair"),
        ([("a", 1, 2)], "pair"),
        ([("a", "much")], "numbers"),
        ([("a", float("nan"))], "finite"),
        ([("a", 0)], "not all zero"),
        ([("a", 1), ("a", -1)], "cancel"),
        ([(5, 1)], "words or a picture, not int"),
        ([(None, 1)], "words or a picture"),
        ([("", 1)], "empty"),
    ],
)
def test_mixes_that_make_no_sense(encoder: QueryEncoder, parts: list[Any], words: str) -> None:
    with pytest.raises(InvalidQueryError, match=words):
        encoder.mix(*parts)


def test_several_things_in_every_form(encoder: QueryEncoder) -> None:
    texts, paths = ["a cat", "a house"], photo_paths()[:2]
    np.testing.assert_array_equal(encoder.texts(one for one in texts), encoder.texts(texts))
    np.testing.assert_array_equal(encoder.texts(dict.fromkeys(texts)), encoder.texts(texts))
    np.testing.assert_array_equal(encoder.images(one for one in paths), encoder.images(paths))
    np.testing.assert_array_equal(encoder.images({paths[0]}), encoder.images(paths[:1]))
    mixes: list[list[Any]] = [[("a cat", 1), (paths[0], 0.5)], [("a house", 1)]]
    np.testing.assert_array_equal(encoder.mixes((part for part in mix) for mix in mixes), encoder.mixes(mixes))


@pytest.mark.parametrize("wrong", [None, 5, [], ()])
def test_several_things_that_are_none(encoder: QueryEncoder, wrong: Any) -> None:
    for encode in (encoder.texts, encoder.images, encoder.mixes):
        with pytest.raises(InvalidQueryError, match="list"):
            encode(wrong)
    with pytest.raises(InvalidQueryError, match="a mix"):
        encoder.mixes([wrong])


def test_a_mix_with_a_file_that_is_gone(encoder: QueryEncoder) -> None:
    with pytest.raises(ImageError, match="no such file"):
        encoder.mix(("a", 1), (Path("nowhere.jpg"), 1))


def test_a_burst_of_64_texts_is_one_batch(encoder: QueryEncoder, runs: list[tuple[int, ...]]) -> None:
    texts = [f"query number {number}" for number in range(64)]
    vectors = encoder.texts(texts)
    assert runs == [(64, 77)]
    assert vectors.shape == (64, 32)
    encoder.texts([*texts, "one more"])
    assert runs[1:] == [(64, 77), (1, 77)]
    runs.clear()
    encoder.images([photo_paths()[0]] * 17)
    assert [shape[0] for shape in runs] == [16, 1]


def test_ten_thousand_texts_at_once(encoder: QueryEncoder, runs: list[tuple[int, ...]]) -> None:
    few = [f"word {number}" for number in range(100)]
    vectors = encoder.texts(few * 100)
    assert vectors.shape == (10_000, 32)
    assert max(shape[0] for shape in runs) == 64
    np.testing.assert_allclose(vectors[9_900:], encoder.texts(few), atol=1e-5)


def test_a_long_text_says_that_it_was_cut(encoder: QueryEncoder) -> None:
    assert encoder.context_length == 77
    long = "a red car in the snow " * 30
    with pytest.warns(TextCutWarning, match=r"1 of 1 texts cut: only the first 77 tokens.*'a red car") as told:
        vector = encoder.text(long)
    assert told[0].filename == __file__  # the caller's line, not ours
    with pytest.warns(TextCutWarning):
        np.testing.assert_allclose(encoder.text(long + " and whatever follows"), vector, atol=1e-6)
    with pytest.warns(TextCutWarning, match=r"2 of 3 texts cut"):
        encoder.texts([long, "short", long])
    with pytest.warns(TextCutWarning):
        encoder.mix((long, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.text(" ".join(["word"] * 75))  # 75 words and two marks: just fits


def test_a_hundred_thousand_characters(encoder: QueryEncoder) -> None:
    started = time.perf_counter()
    for text in ("x" * 100_000, "schön 🌊 " * 12_500, "&amp;" * 20_000, "\u0300" * 100_000, "a\n" * 50_000):
        with pytest.warns(TextCutWarning):
            vector = encoder.text(text)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize("texts", [[5], [None], ["a", b"b"], ["a\ud800"], ["a", " "], []])
def test_texts_that_are_none(encoder: QueryEncoder, texts: list[Any]) -> None:
    with pytest.raises(InvalidQueryError):
        encoder.texts(texts)


def test_each_tower_is_loaded_at_its_first_use(clip: Exported, tmp_path: Path) -> None:
    """A graph of the right size whose bytes are noise cannot be loaded: what works did not try."""
    for spoilt, works, fails in (("visual", "text", "image"), ("textual", "image", "text")):
        folder = tmp_path / spoilt
        shutil.copytree(clip.folder, folder)
        for graph in folder.glob(f"{spoilt}*.onnx"):
            graph.write_bytes(os.urandom(graph.stat().st_size))
        encoder = QueryEncoder.open(folder, device="cpu")
        query = {"text": "a", "image": photo_paths()[0]}
        assert getattr(encoder, works)(query[works]).shape == (32,)
        with pytest.raises(BundleError, match=f"{spoilt}.onnx"):
            getattr(encoder, fails)(query[fails])
        encoder.close()


def test_many_threads_load_a_tower_once(clip: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = Session.__init__

    def counted(self: Session, path: Path, **options: Any) -> None:
        loaded.append(path.name)
        load(self, path, **options)

    monkeypatch.setattr(Session, "__init__", counted)
    with QueryEncoder.open(clip.folder, device="cpu") as encoder, ThreadPoolExecutor(16) as pool:
        expected = encoder.text("one") if not loaded else None
        loaded.clear()
        encoder2 = QueryEncoder.open(clip.folder, device="cpu")
        for vector in pool.map(encoder2.text, ["one"] * 64):
            np.testing.assert_allclose(vector, expected, atol=1e-6)
        encoder2.close()
    assert loaded == ["textual.onnx"]


def test_used_after_it_was_closed(clip: Exported) -> None:
    with QueryEncoder.open(clip.folder, device="cpu") as encoder:
        encoder.text("a")
    for use in (
        lambda: encoder.text("a"),
        lambda: encoder.image(photo_paths()[0]),
        lambda: encoder.mix(("a", 1)),
        lambda: pickle.dumps(encoder),
    ):
        with pytest.raises(ClosedError, match="closed"):
            use()
    encoder.close()  # twice does no harm
    assert issubclass(ClosedError, RuntimeError)


def test_closing_frees_the_graphs(clip: Exported) -> None:
    import gc
    import weakref

    encoder = QueryEncoder.open(clip.folder, device="cpu")
    encoder.text("a")
    held = weakref.ref(encoder._texts.get())
    encoder.close()
    gc.collect()
    assert held() is None


def test_a_pickle_is_small_and_opens_the_same_bundle(clip: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.folder.parent)
    encoder = QueryEncoder.open(clip.folder.name, device="cpu", precision="int8", threads=1)
    encoder.text("a")
    data = pickle.dumps(encoder)
    assert len(data) < 1000
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.text("a"), encoder.text("a"))
    assert again._settings == encoder._settings
    for one in (encoder, again):
        one.close()


def test_a_pickle_refuses_another_model(clip: Exported, other_clip: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(clip.folder, folder)
    data = pickle.dumps(QueryEncoder.open(folder, device="cpu"))
    shutil.rmtree(folder)
    shutil.copytree(other_clip.folder, folder)
    with pytest.raises(BundleError, match=r"is now .*put the old bundle back"):
        pickle.loads(data)
    shutil.rmtree(folder)
    with pytest.raises(BundleError, match="does not exist"):
        pickle.loads(data)


def test_a_pool_of_processes(encoder: QueryEncoder) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        (vector,) = pool.map(encoder.text, ["the sea"])
    np.testing.assert_allclose(vector, encoder.text("the sea"), atol=1e-6)


def test_int8_graphs_search_the_same_space(clip: Exported, encoder: QueryEncoder) -> None:
    with QueryEncoder.open(clip.folder, device="cpu", precision="int8") as small:
        paths = photo_paths()
        pairs = [(small.images(paths), encoder.images(paths)), (small.texts(["a", "b c"]), encoder.texts(["a", "b c"]))]
    for ours, exact in pairs:
        cosines = (ours * exact).sum(axis=1)
        assert 0.95 < cosines.min() < 1
    with pytest.raises(BundleError, match="no int9 graph"):
        QueryEncoder.open(clip.folder, device="cpu", precision="int9").text("a")  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="unknown device"):
        QueryEncoder.open(clip.folder, device="tpu")


def test_a_text_loads_neither_pillow_nor_qdrant_and_opening_no_runtime(clip: Exported) -> None:
    code = """
import sys
from mcip_qdrant import QueryEncoder

def loaded(*names):
    return [name for name in names if name in sys.modules]

encoder = QueryEncoder.open(sys.argv[1], device="cpu")
assert not loaded("onnxruntime", "PIL", "qdrant_client", "torch", "open_clip", "celery")
encoder.text("a")
encoder.mix(("a", 1), ("b", -1))
assert not loaded("PIL", "qdrant_client", "torch", "open_clip", "celery", "grpc", "httpx", "pydantic")
"""
    subprocess.run([sys.executable, "-c", code, clip.folder], check=True)

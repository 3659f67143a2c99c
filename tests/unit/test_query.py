"""`QueryEncoder`: every accepted form of a query, and every refused one."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import Exported
from photos import photo_paths
from PIL import Image

from mcip_qdrant import ImageError, InvalidQueryError, QueryEncoder, Reason


@pytest.fixture(scope="module")
def encoder(clip: Exported) -> QueryEncoder:
    return QueryEncoder.open(clip.folder, device="cpu")


def test_every_form_of_one_picture_gives_one_vector(encoder: QueryEncoder) -> None:
    path = photo_paths()[3]
    picture = Image.open(path).convert("RGB")
    forms = [path, str(path), path.read_bytes(), picture, np.asarray(picture)]
    vectors = encoder.images(forms)  # type: ignore[arg-type]
    assert vectors.shape == (5, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.repeat(vectors[:1], 5, axis=0))
    np.testing.assert_allclose(encoder.image(path), vectors[0], atol=1e-6)


def test_grey_array_equals_grey_picture(encoder: QueryEncoder) -> None:
    picture = Image.open(photo_paths()[2]).convert("L")
    np.testing.assert_array_equal(encoder.image(np.asarray(picture)), encoder.image(picture))


def test_orientation_is_applied_to_queries_too(encoder: QueryEncoder) -> None:
    picture = Image.open(photo_paths()[3]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    picture.transpose(Image.Transpose.ROTATE_90).save(stream, format="PNG", exif=exif)
    np.testing.assert_array_equal(encoder.image(stream.getvalue()), encoder.image(picture))


def test_batches_do_not_mix_up_items(encoder: QueryEncoder) -> None:
    """More than one internal batch; item i of the batch is item i alone."""
    paths = [path for path in photo_paths() for _ in range(3)]
    together = encoder.images(paths)
    for index in (0, 15, 16, 17, len(paths) - 1):
        np.testing.assert_allclose(together[index], encoder.image(paths[index]), atol=1e-5)
    texts = [f"picture number {index}" for index in range(130)]
    vectors = encoder.texts(texts)
    for index in (0, 63, 64, 129):
        np.testing.assert_allclose(vectors[index], encoder.text(texts[index]), atol=1e-5)


def test_results_are_what_qdrant_takes(encoder: QueryEncoder) -> None:
    vector = encoder.text("the sea")
    assert vector.shape == (32,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert isinstance(vector.tolist()[0], float)


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_text(encoder: QueryEncoder, text: str) -> None:
    with pytest.raises(InvalidQueryError, match="empty"):
        encoder.text(text)


def test_no_input_at_all(encoder: QueryEncoder) -> None:
    with pytest.raises(InvalidQueryError):
        encoder.texts([])
    with pytest.raises(InvalidQueryError):
        encoder.images([])


def test_one_item_where_a_list_belongs(encoder: QueryEncoder) -> None:
    with pytest.raises(InvalidQueryError, match=r"text\(\)"):
        encoder.texts("a cat")
    with pytest.raises(InvalidQueryError, match=r"image\(\)"):
        encoder.images("cat.jpg")


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros(3, np.uint8)]
)
def test_arrays_of_the_wrong_kind(encoder: QueryEncoder, array: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidQueryError, match="uint8"):
        encoder.image(array)


def test_unreadable_pictures_name_the_file(encoder: QueryEncoder, tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>")
    with pytest.raises(ImageError, match="page.jpg") as caught:
        encoder.image(tmp_path / "page.jpg")
    assert caught.value.reason is Reason.NOT_AN_IMAGE
    with pytest.raises(ImageError, match="no such file") as caught:
        encoder.image(tmp_path / "nothing.jpg")
    assert caught.value.reason is Reason.GONE


def test_threads_share_one_encoder(clip: Exported) -> None:
    encoder = QueryEncoder.open(clip.folder, device="cpu")
    expected = {text: QueryEncoder.open(clip.folder, device="cpu").text(text) for text in ("a", "b", "c", "d")}
    wrong: list[str] = []

    def ask(text: str) -> None:
        for _ in range(20):
            if not np.allclose(encoder.text(text), expected[text], atol=1e-6):
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(text,)) for text in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

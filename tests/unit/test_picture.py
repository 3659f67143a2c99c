"""Pictures in every accepted form, and what is none."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcip_qdrant import decode
from mcip_qdrant.errors import ImageError, InvalidQueryError, Reason
from mcip_qdrant.picture import is_picture, rgb_image


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


class Dribble(io.RawIOBase):
    """A stream that gives less than it is asked for, as sockets do."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    def read(self, size: int = -1) -> bytes:
        piece, self._left = self._left[: min(size, 5)], self._left[min(size, 5) :]
        return piece


def test_every_form_is_the_same_picture(file: Path) -> None:
    data = file.read_bytes()
    expected = np.asarray(Image.open(file))
    forms = [file, str(file), data, bytearray(data), memoryview(data), io.BytesIO(data), Dribble(data)]
    forms += [Image.open(file), expected]
    for form in forms:
        np.testing.assert_array_equal(np.asarray(rgb_image(form)), expected, err_msg=str(type(form)))  # type: ignore[arg-type]
    with file.open("rb") as stream:
        np.testing.assert_array_equal(np.asarray(rgb_image(stream)), expected)
        assert not stream.closed


def test_a_file_object_is_read_from_where_it_stands(file: Path) -> None:
    stream = io.BytesIO(b"head" + file.read_bytes())
    stream.seek(4)
    assert rgb_image(stream).size == (7, 9)


def test_a_name_that_is_not_utf8(file: Path) -> None:
    odd = os.fsdecode(bytes(file.parent) + b"/caf\xe9.png")
    file.rename(odd)
    assert rgb_image(odd).size == (7, 9)


def test_file_objects_that_cannot_be_read(file: Path) -> None:
    for encoding in ("latin-1", "utf-8"):
        with pytest.raises(InvalidQueryError, match="binary mode"), file.open(encoding=encoding) as text:
            rgb_image(text)  # type: ignore[arg-type]
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(ImageError, match="closed file") as caught:
        rgb_image(closed)
    assert caught.value.reason is Reason.UNREADABLE
    with pytest.raises(ImageError, match="at its end, or empty"):
        rgb_image(io.BytesIO())
    with file.open("ab") as writing, pytest.raises(ImageError) as caught:
        rgb_image(writing)
    assert caught.value.reason is Reason.UNREADABLE


def test_size_limits_hold_for_every_form(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Few(decode.DecodeLimits):
        pass

    monkeypatch.setattr(decode, "DecodeLimits", lambda: Few(max_bytes=file.stat().st_size - 1, max_pixels=100))
    data = file.read_bytes()
    for form in (file, io.BytesIO(data)):
        with pytest.raises(ImageError) as caught:
            rgb_image(form)
        assert caught.value.reason is Reason.TOO_LARGE
        assert ("a.png" in str(caught.value)) == (form is file)
    monkeypatch.setattr(decode, "DecodeLimits", lambda: Few(max_pixels=62))
    for form in (Image.new("L", (7, 9)), np.zeros((9, 7, 3), np.uint8), np.zeros((9, 7), np.uint8)):
        with pytest.raises(ImageError, match="7 x 9 pixels; the limit is 62") as caught:
            rgb_image(form)
        assert caught.value.reason is Reason.TOO_MANY_PIXELS


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_200_megapixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png", compress_level=1)
    for form in (tmp_path / "huge.png", (tmp_path / "huge.png").read_bytes()):
        with pytest.raises(ImageError) as caught:
            rgb_image(form)
        assert caught.value.reason is Reason.TOO_MANY_PIXELS
    monster = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (20_000, 10_000, 3))
    with pytest.raises(ImageError, match="10000 x 20000"):
        rgb_image(monster)


@pytest.mark.parametrize("nothing", [None, 5, 1.5, ["a.png"], {"a": 1}, object()])
def test_what_is_no_picture(nothing: object) -> None:
    assert not is_picture(nothing)
    with pytest.raises(InvalidQueryError, match=f"not {type(nothing).__name__}"):
        rgb_image(nothing)  # type: ignore[arg-type]


def test_names_without_a_file(tmp_path: Path) -> None:
    for name, reason in ((tmp_path, Reason.UNREADABLE), (tmp_path / "no.png", Reason.GONE), ("a\0b", Reason.GONE)):
        with pytest.raises(ImageError) as caught:
            rgb_image(name)
        assert caught.value.reason is reason


def test_binary_garbage_is_an_image_error() -> None:
    rng = np.random.default_rng(1)
    heads = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0", b"BM")
    for head in heads:
        for length in (1, 50, 5000):
            with pytest.raises(ImageError):
                rgb_image(head + rng.bytes(length))


@pytest.mark.filterwarnings("error")
def test_file_objects_that_give_no_bytes(file: Path) -> None:
    class Upload:
        async def read(self, size: int = -1) -> bytes:
            return b""

    class Numbers:
        def read(self, size: int = -1) -> list[int]:
            return [1]

    with pytest.raises(InvalidQueryError, match=r"read asynchronously.*await"):
        rgb_image(Upload())  # type: ignore[arg-type]
    with pytest.raises(InvalidQueryError, match="gives list where bytes belong"):
        rgb_image(Numbers())  # type: ignore[arg-type]
    with file.open("rb") as stream:
        rgb_image(stream)
        with pytest.raises(ImageError, match="at its end, or empty") as told:
            rgb_image(stream)
    assert told.value.reason is Reason.EMPTY


def test_a_reader_may_give_any_bytes(file: Path) -> None:
    class Reader(io.BytesIO):
        def read(self, size: int | None = -1) -> bytearray:  # type: ignore[override]
            return bytearray(super().read(size))

    np.testing.assert_array_equal(np.asarray(rgb_image(Reader(file.read_bytes()))), np.asarray(Image.open(file)))


def test_threads_may_share_a_picture_that_is_not_read_yet(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for _ in range(4):
        with Image.open(tmp_path / "a.png") as picture, ThreadPoolExecutor(8) as pool:
            for found in pool.map(rgb_image, [picture] * 8):
                np.testing.assert_array_equal(np.asarray(found), pixels)


def test_words_are_no_picture_in_a_mix() -> None:
    assert not is_picture("car.jpg")
    for picture in (
        Path("car.jpg"),
        b"",
        bytearray(),
        io.BytesIO(),
        np.zeros((2, 2), np.uint8),
        Image.new("RGB", (1, 1)),
    ):
        assert is_picture(picture)

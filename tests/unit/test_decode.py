"""Image rules: pixels worked out by hand, and files that mean harm."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mcip_qdrant.decode import FORMATS, DecodeLimits, decode, to_rgb
from mcip_qdrant.errors import ImageError, Reason
from mcip_qdrant.manifest import Preprocess

Pixels = list[list[tuple[int, int, int]]]

A, B, C, D, E, F = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (9, 99, 199)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
RED, BLUE = (255, 0, 0), (0, 0, 255)
ORIENTATION = 0x0112


def picture(rows: Pixels) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def pixels(image: Image.Image) -> Pixels:
    assert image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    # Pillow leaves one format's encoder settings on the picture, and the next format stumbles over them.
    if "append_images" in options:
        options["append_images"] = [frame.copy() for frame in options["append_images"]]
    image.copy().save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file chunk by chunk, for what Pillow does not write; `rows` holds the filter byte of each row."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        out += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return out


def tiff(data: bytes, tags: dict[int, int], after: bytes = b"") -> bytes:
    """A little-endian TIFF with one page of 32-bit tags; its data begin at offset 8."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return (
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4) + after
    )


def near(image: Image.Image, point: tuple[int, int], colour: tuple[int, int, int], most: int = 3) -> bool:
    """Whether the pixel at (x, y) is `colour` up to what a lossy format may lose."""
    x, y = point
    return bool(np.abs(np.asarray(image)[y, x].astype(int) - colour).max() <= most)


def reason(data: bytes, **options: Any) -> Reason:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    assert str(caught.value)
    return caught.value.reason


def config(size: tuple[int, int] = (224, 224), **options: Any) -> Preprocess:
    return Preprocess(size=size, mean=(0.0,) * 3, std=(1.0,) * 3, **options)


# --- orientation

UPRIGHT: dict[int, Pixels] = {
    1: [[A, B, C], [D, E, F]],
    2: [[C, B, A], [F, E, D]],
    3: [[F, E, D], [C, B, A]],
    4: [[D, E, F], [A, B, C]],
    5: [[A, D], [B, E], [C, F]],
    6: [[D, A], [E, B], [F, C]],
    7: [[F, C], [E, B], [D, A]],
    8: [[C, F], [B, E], [A, D]],
}


@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation: int, form: str, options: dict[str, Any]) -> None:
    image = decode(saved(picture(UPRIGHT[1]), form, exif=exif(orientation), **options))
    assert pixels(image.rgb) == UPRIGHT[orientation]
    assert (image.width, image.height) == image.rgb.size
    assert image.format == form


def test_orientation_of_jpeg() -> None:
    stored = picture([[RED] * 32 + [BLUE] * 32] * 16)
    image = decode(saved(stored, "JPEG", quality=95, exif=exif(6)))
    assert image.rgb.size == (16, 64)
    assert near(image.rgb, (8, 8), RED)
    assert near(image.rgb, (8, 56), BLUE)


@pytest.mark.parametrize("value", [0, 9, 255])
def test_orientations_outside_1_to_8_are_ignored(value: int) -> None:
    assert pixels(decode(saved(picture(UPRIGHT[1]), "PNG", exif=exif(value))).rgb) == UPRIGHT[1]


def test_orientation_from_xmp_where_exif_has_none() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    assert pixels(decode(saved(picture(UPRIGHT[1]), "WEBP", lossless=True, xmp=xmp)).rgb) == UPRIGHT[3]


@pytest.mark.parametrize("damage", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage!!", b"\0" * 40])
def test_damaged_exif_does_not_spoil_a_sound_picture(damage: bytes) -> None:
    assert decode(saved(picture([[RED] * 8] * 8), "JPEG", exif=damage)).rgb.size == (8, 8)
    assert pixels(decode(saved(picture(UPRIGHT[1]), "PNG", exif=damage)).rgb) == UPRIGHT[1]


# --- colour


def test_grey_and_bilevel() -> None:
    grey = Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8))
    assert pixels(decode(saved(grey, "PNG")).rgb) == [[BLACK, (100,) * 3, WHITE]]
    bits = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    for form in ("PNG", "BMP", "TIFF"):
        assert pixels(decode(saved(bits, form)).rgb) == [[BLACK, WHITE]]


def test_alpha_is_laid_on_white() -> None:
    # 200·128/255 + 255·127/255 = 227.4; 100 -> 177.2; 0 -> 127
    rgba = Image.new("RGBA", (2, 1))
    rgba.putdata([(200, 100, 0, 128), (1, 2, 3, 0)])
    for form, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert pixels(decode(saved(rgba, form, **options)).rgb) == [[(227, 177, 127), WHITE]]
    # 100·51/255 + 255·204/255 = 224
    grey = Image.new("LA", (2, 1))
    grey.putdata([(100, 51), (7, 255)])
    assert pixels(decode(saved(grey, "PNG")).rgb) == [[(224,) * 3, (7,) * 3]]


def test_palette() -> None:
    indexed = Image.new("P", (3, 1))
    indexed.putpalette([200, 100, 0, 10, 20, 30, 1, 2, 3])
    indexed.putdata([0, 1, 2])
    assert pixels(decode(saved(indexed, "PNG")).rgb) == [[(200, 100, 0), (10, 20, 30), (1, 2, 3)]]
    some = saved(indexed, "PNG", transparency=bytes([128, 255, 0]))
    assert pixels(decode(some).rgb) == [[(227, 177, 127), (10, 20, 30), WHITE]]
    for form in ("PNG", "GIF"):
        assert pixels(decode(saved(indexed, form, transparency=1)).rgb) == [[(200, 100, 0), WHITE, (1, 2, 3)]]


def test_colour_keys_are_laid_on_white() -> None:
    grey = Image.fromarray(np.array([[5, 6]], dtype=np.uint8))
    assert pixels(decode(saved(grey, "PNG", transparency=5)).rgb) == [[WHITE, (6,) * 3]]
    colour = picture([[A, F]])
    assert pixels(decode(saved(colour, "PNG", transparency=F)).rgb) == [[A, WHITE]]
    for depth, row, key, wanted in (
        (4, b"\x50\xf3", 5, (255, 0, 255, 51)),
        (4, b"\x50\xf3", 0, (85, 255, 255, 51)),
        (2, b"\x4e", 1, (255, 0, 255, 170)),
        (1, b"\x50", 0, (255, 255, 255, 255)),
        (1, b"\x50", 1, (0, 255, 0, 255)),
    ):
        low = png(4, 1, depth, 0, b"\0" + row, (b"tRNS", struct.pack(">H", key)))
        assert pixels(decode(low).rgb) == [[(value,) * 3 for value in wanted]], (depth, key)
    deep = png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 0x1234, 0x3412), (b"tRNS", struct.pack(">H", 0x1234)))
    assert pixels(decode(deep).rgb) == [[WHITE, (0x34,) * 3]]
    # The second pixel's high bytes equal the key's low bytes: a comparison of those would make it transparent.
    key = (0x1234, 0x5678, 0x9ABC)
    row = b"\0" + struct.pack(">6H", *key, 0x3400, 0x7800, 0xBC00)
    assert pixels(decode(png(2, 1, 16, 2, row, (b"tRNS", struct.pack(">3H", *key)))).rgb) == [
        [WHITE, (0x34, 0x78, 0xBC)]
    ]


def test_sixteen_bits_keep_the_high_byte() -> None:
    values = np.array([[0x0000, 0x00FF, 0x0100, 0x80FF, 0xFFFF]], dtype=np.uint16)
    wanted = [[(value,) * 3 for value in (0, 0, 1, 128, 255)]]
    for form in ("PNG", "TIFF"):
        assert pixels(decode(saved(Image.fromarray(values), form)).rgb) == wanted
    assert pixels(to_rgb(Image.fromarray(values.astype(">u2")))) == wanted
    assert pixels(to_rgb(Image.fromarray(values.astype(np.int32)))) == wanted
    colour = png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0x00FF, 0x80FF, 0xFFFF))
    assert pixels(decode(colour).rgb) == [[(0, 128, 255)]]


def test_other_depths() -> None:
    wide = Image.fromarray(np.array([[-5, 0x7FFF, 70000]], dtype=np.int32))
    assert pixels(decode(saved(wide, "TIFF")).rgb) == [[BLACK, (127,) * 3, WHITE]]
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0, -1.0, np.nan]], dtype=np.float32))
    assert pixels(decode(saved(unit, "TIFF")).rgb) == [[BLACK, (128,) * 3, WHITE, BLACK, BLACK]]
    large = Image.fromarray(np.array([[0.4, 100.0, 300.0, np.inf]], dtype=np.float32))
    assert pixels(decode(saved(large, "TIFF")).rgb) == [[BLACK, (100,) * 3, WHITE, WHITE]]
    # Two 12-bit pixels, 0x800 and 0xFFF, in three bytes.
    twelve = tiff(b"\x80\x0f\xff", {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3})
    assert pixels(decode(twelve).rgb) == [[(128,) * 3, WHITE]]


def test_grey_tiff_where_white_is_zero() -> None:
    eight = np.array([[0, 128, 255]], dtype=np.uint8)
    sixteen = np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16)
    unit = np.array([[0.0, 0.25, 1.0]], dtype=np.float32)
    for values, middle in ((eight, 127), (sixteen, 127), (unit, 191)):
        sizes = {256: 3, 257: 1, 258: 8 * values.itemsize, 259: 1, 262: 0, 273: 8, 277: 1, 278: 1, 279: values.nbytes}
        kind = {339: 3} if values.dtype == np.float32 else {}
        assert pixels(decode(tiff(values.tobytes(), sizes | kind)).rgb) == [[WHITE, (middle,) * 3, BLACK]]


def test_unsigned_32_bits_are_clipped_like_signed_ones() -> None:
    values = np.array([[0x1234, 0x80000000, 0xFFFFFFFF]], dtype=np.uint32)
    tags = {256: 3, 257: 1, 258: 32, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 12}
    for kind in ({}, {339: 1}):
        assert pixels(decode(tiff(values.tobytes(), tags | kind)).rgb) == [[(0x12,) * 3, WHITE, WHITE]]


def test_print_and_video_colours() -> None:
    cmyk = Image.new("CMYK", (4, 1))
    cmyk.putdata([(0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255), (255, 0, 0, 51)])
    # Pillow's plain rule: (255 - ink) · (255 - black) / 255
    assert pixels(decode(saved(cmyk, "TIFF")).rgb) == [[WHITE, RED, BLACK, (0, 204, 204)]]
    # Adobe's JPEGs store ink inverted.
    for ink, colour in (((0, 255, 255, 0), RED), ((0, 0, 0, 0), WHITE)):
        photo = decode(saved(Image.new("CMYK", (8, 8), ink), "JPEG", quality=100))
        assert near(photo.rgb, (4, 4), colour)
    video = Image.new("YCbCr", (2, 1))
    video.putdata([(255, 128, 128), (0, 128, 128)])
    assert pixels(to_rgb(video)) == [[WHITE, BLACK]]
    lab = Image.new("LAB", (2, 1))
    lab.putdata([(255, 128, 128), (0, 128, 128)])
    ends = decode(saved(lab, "TIFF")).rgb
    assert near(ends, (0, 0), WHITE, 1)
    assert near(ends, (1, 0), BLACK, 1)


@pytest.mark.parametrize(
    ("form", "options"),
    [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("AVIF", {"quality": 100})],
)
def test_first_frame(form: str, options: dict[str, Any]) -> None:
    data = saved(
        Image.new("RGB", (16, 16), RED),
        form,
        save_all=True,
        append_images=[Image.new("RGB", (16, 16), BLUE)],
        **options,
    )
    with Image.open(io.BytesIO(data)) as stored:
        assert getattr(stored, "n_frames", 1) == 2
    image = decode(data)
    assert image.format == form
    assert near(image.rgb, (8, 8), RED, 3 if form == "AVIF" else 0)


def test_phone_jpeg_with_a_second_picture_inside() -> None:
    data = saved(
        Image.new("RGB", (16, 16), RED), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16), BLUE)]
    )
    image = decode(data)
    assert image.format == "MPO"
    assert near(image.rgb, (8, 8), RED)


def test_avif() -> None:
    image = decode(saved(Image.new("RGB", (32, 16), (10, 200, 100)), "AVIF", quality=100, exif=exif(8)))
    assert (image.format, image.rgb.size) == ("AVIF", (16, 32))
    assert near(image.rgb, (8, 8), (10, 200, 100))


# --- pictures in memory


def test_to_rgb_of_pictures_in_memory() -> None:
    rgb = picture(UPRIGHT[1])
    assert to_rgb(rgb) is rgb
    premultiplied = Image.frombytes("RGBa", (1, 1), bytes([100, 0, 50, 128]))
    assert near(to_rgb(premultiplied), (0, 0), (100 + 127, 127, 50 + 127), 1)
    palette_alpha = Image.new("PA", (2, 1))
    palette_alpha.putpalette([200, 100, 0])
    palette_alpha.putdata([(0, 128), (0, 0)])
    assert pixels(to_rgb(palette_alpha)) == [[(227, 177, 127), WHITE]]
    turned = Image.open(io.BytesIO(saved(rgb, "PNG", exif=exif(6))))
    assert pixels(to_rgb(turned)) == UPRIGHT[6]
    assert turned.size == (3, 2)
    assert to_rgb(Image.new("HSV", (1, 1), (0, 0, 255))).getpixel((0, 0)) == WHITE


def test_to_rgb_refuses_by_image_error() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        to_rgb(Image.new("RGB", (0, 5)))
    cut = Image.open(io.BytesIO(saved(noise(), "PNG")[:-200]))
    with pytest.raises(ImageError) as caught:
        to_rgb(cut)
    assert caught.value.reason is Reason.CORRUPT


# --- scaled decoding


def shades(width: int, height: int, **options: Any) -> bytes:
    return saved(Image.linear_gradient("L").resize((width, height)).convert("RGB"), "JPEG", **options)


@pytest.mark.parametrize(
    ("size", "wanted", "decoded"),
    [
        ((1600, 1200), config(), (800, 600)),  # resized to 298 x 224: a quarter would be under twice that
        ((3584, 1792), config(), (896, 448)),  # exactly twice
        ((3580, 1791), config(), (1790, 896)),
        ((640, 480), config(), (640, 480)),
        ((1792, 1792), config(resize_mode="squash"), (448, 448)),
        ((3000, 500), config(resize_mode="squash"), (3000, 500)),
        ((3600, 300), config(resize_mode="longest"), (900, 75)),  # 224 x 19: an eighth would be 37.5 high
        ((900, 600), config((100, 50)), (450, 300)),
        ((8, 900), config(), (8, 900)),
    ],
)
def test_scaled_decoding_stays_at_twice_the_target(
    size: tuple[int, int], wanted: Preprocess, decoded: tuple[int, int]
) -> None:
    image = decode(shades(*size), scaled_for=wanted)
    assert image.rgb.size == decoded
    assert (image.width, image.height) == size


def test_scaled_decoding_of_a_turned_picture() -> None:
    # Shown as 1200 x 4800: squash to 100 wide and 600 high wants at least 200 x 1200.
    image = decode(shades(4800, 1200, exif=exif(6)), scaled_for=config((600, 100), resize_mode="squash"))
    assert image.rgb.size == (300, 1200)
    assert (image.width, image.height) == (1200, 4800)


def test_scaled_decoding_leaves_other_formats_alone() -> None:
    data = saved(noise(900, 900), "PNG")
    assert decode(data, scaled_for=config((32, 32))).rgb.tobytes() == decode(data).rgb.tobytes()


# --- refusals


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_empty_and_foreign_files() -> None:
    assert reason(b"") is Reason.EMPTY
    assert reason(b"<!DOCTYPE html><html><title>404</title></html>") is Reason.NOT_AN_IMAGE
    assert reason(b"\0") is Reason.NOT_AN_IMAGE
    assert reason(b"%PDF-1.7\n") is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize("form", FORMATS)
def test_pictures_cut_short_are_corrupt(form: str) -> None:
    data = saved(noise(), form)
    assert reason(data[: len(data) * 2 // 3]) is Reason.CORRUPT
    assert reason(data[:16]) is Reason.CORRUPT


def test_limits() -> None:
    data = saved(noise(), "PNG")
    assert reason(data, limits=DecodeLimits(max_bytes=len(data) - 1)) is Reason.TOO_LARGE
    assert reason(data, limits=DecodeLimits(max_pixels=1199)) is Reason.TOO_MANY_PIXELS
    assert reason(data, limits=DecodeLimits(formats=("JPEG", "GIF"))) is Reason.NOT_AN_IMAGE
    exact = DecodeLimits(max_bytes=len(data), max_pixels=1200, formats=("PNG",))
    assert decode(data, limits=exact).rgb.size == (40, 30)
    assert reason(shades(400, 400), limits=DecodeLimits(max_pixels=159_999), scaled_for=config((8, 8))) is (
        Reason.TOO_MANY_PIXELS
    )


def vast_png(width: int, height: int) -> bytes:
    return png(width, height, 8, 2, bytes(64))


def vast_tile() -> bytes:
    # 100 x 100 pixels in one tile of 30,000 x 30,000; the data are never looked at.
    data = zlib.compress(bytes(1000))
    tags = {256: 100, 257: 100, 258: 8, 259: 8, 262: 1, 277: 1, 322: 30_000, 323: 30_000, 324: 8, 325: len(data)}
    return tiff(data, tags)


def vast_webp() -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + struct.pack("<I", 16382)[:3] * 2 + b"VP8L" + bytes(8)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: vast_png(50_000, 50_000),
    "png between the limit and twice it": lambda: vast_png(10_000, 9_000),
    "gif screen": lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(3) + b"," + bytes(9) + b"\2\1\0\0;",
    "gif frame": lambda: (
        b"GIF89a\1\0\1\0" + bytes(3) + b"," + struct.pack("<4HB", 0, 0, 65535, 65535, 0) + b"\2\1\0\0;"
    ),
    "bmp": lambda: (
        b"BM" + struct.pack("<3I", 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 50_000, 50_000, 1, 24, *[0] * 6)
    ),
    "tiff": lambda: tiff(b"", {256: 50_000, 257: 50_000, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 0}),
    "tiff tile": vast_tile,
    "webp": vast_webp,
}


@pytest.mark.parametrize("ceiling", [Image.MAX_IMAGE_PIXELS, None])
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_any_pixel(name: str, ceiling: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        pytest.fail("pixels were decoded")

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", ceiling)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    found = reason(BOMBS[name]())
    if name == "webp":  # libwebp itself may refuse the file first
        assert found in {Reason.TOO_MANY_PIXELS, Reason.CORRUPT}
    else:
        assert found is Reason.TOO_MANY_PIXELS


def test_pillows_own_ceiling_holds_too_and_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode(saved(noise(), "PNG")).rgb.size == (40, 30)  # Pillow only warns here, and our limit allows it
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert reason(saved(noise(), "PNG")) is Reason.TOO_MANY_PIXELS
    assert Image.MAX_IMAGE_PIXELS == 500


def test_progressive_jpeg_of_thousands_of_scans() -> None:
    data = saved(Image.new("L", (256, 256), 77), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    assert decode(data).rgb.size == (256, 256)
    assert reason(data[:last] + data[last:-2] * 3000 + data[last:]) is Reason.CORRUPT


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError("out of memory when reading image file")], ids=["python", "codec"]
)
def test_out_of_memory(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_self: object) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert reason(saved(noise(), "BMP")) is Reason.OUT_OF_MEMORY


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("data", "most"),
    [
        (saved(Image.new("RGB", (60_000, 1), RED), "PNG"), 300),
        (saved(Image.new("RGB", (1, 60_000), RED), "PNG"), 300),
        (vast_png(50_000, 50_000), 100),
    ],
    ids=["60000x1", "1x60000", "bomb"],
)
def test_peak_memory(data: bytes, most: int) -> None:
    # In a process of its own; VmHWM, as ru_maxrss would start from the test process's own size.
    code = """if True:
        import sys
        from pathlib import Path
        from mcip_qdrant.decode import decode
        from mcip_qdrant.errors import ImageError
        from mcip_qdrant.manifest import Preprocess
        from mcip_qdrant.preprocess import preprocess
        try:
            rgb = decode(sys.stdin.buffer.read()).rgb
            pixels = preprocess(rgb, Preprocess(size=(224, 224), mean=(0, 0, 0), std=(1, 1, 1)))
            assert pixels.shape == (224, 224, 3) and (pixels == (255, 0, 0)).all()
        except ImageError as exc:
            assert exc.reason == "too_many_pixels"
        status = Path("/proc/self/status").read_text()
        print(status.split("VmHWM:")[1].split()[0])
    """
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) / 1024 < most


# --- warnings


def odd_tiff() -> bytes:
    """One sound pixel and a tag that lies beyond the end of the file: Pillow warns when it reads this."""
    data = tiff(bytes([5]), {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1})
    directory = len(data) - 4 - 9 * 12 - 2
    grown = data[:directory] + struct.pack("<H", 10) + data[directory + 2 : -4]
    return grown + struct.pack("<HHII", 0x9C9B, 2, 1000, 5000) + bytes(4)


def test_pillow_does_warn_about_the_odd_file() -> None:
    with pytest.warns(UserWarning, match=r"Tag data|Truncated"), Image.open(io.BytesIO(odd_tiff())) as image:
        image.load()


def test_warnings_neither_reach_the_user_nor_spoil_the_picture() -> None:
    # pytest turns warnings into errors here.
    assert pixels(decode(odd_tiff()).rgb) == [[(5, 5, 5)]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode(odd_tiff())
    assert caught == []


def test_many_threads_decode_quietly_while_the_caller_still_gets_warnings() -> None:
    data, failures, stop = odd_tiff(), [], threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                decode(data)
        except BaseException as exc:  # noqa: BLE001  whatever it was, the test must hear of it
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for _ in range(50):
            with pytest.raises(UserWarning, match=r"Tag data|Truncated"):
                Image.open(io.BytesIO(data))
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_filters_do_not_pile_up() -> None:
    data = odd_tiff()
    decode(data)
    before = len(warnings.filters)
    for number in range(20):
        warnings.filterwarnings("error", message=f"never said {number}")
        decode(data)
    assert len(warnings.filters) == before + 20


# --- whatever the bytes, nothing but ImageError


def _seeds() -> dict[str, bytes]:
    small = noise(17, 13)
    two: dict[str, Any] = {"save_all": True, "append_images": [noise(17, 13).rotate(180)]}
    deep = Image.fromarray(np.arange(221, dtype=np.uint16).reshape(13, 17) * 290)
    return {
        "jpeg": saved(small, "JPEG", exif=exif(6)),
        "progressive": saved(small, "JPEG", progressive=True),
        "cmyk": saved(small.convert("CMYK"), "JPEG"),
        "mpo": saved(small, "MPO", exif=exif(3), **two),
        "png": saved(small, "PNG", exif=exif(5)),
        "png palette": saved(small.quantize(16), "PNG", transparency=bytes(range(16))),
        "png 16": saved(deep, "PNG"),
        "apng": saved(small, "PNG", **two),
        "gif": saved(small, "GIF", transparency=3, **two),
        "webp": saved(small, "WEBP", exif=exif(6)),
        "webp lossless": saved(small.convert("RGBA"), "WEBP", lossless=True),
        "webp frames": saved(small, "WEBP", **two),
        "bmp": saved(small, "BMP"),
        "bmp palette": saved(small.quantize(16), "BMP"),
        "tiff": saved(small, "TIFF", exif=exif(7)),
        "tiff pages": saved(small, "TIFF", **two),
        "tiff lzw": saved(small, "TIFF", compression="tiff_lzw", exif=exif(6)),
        "tiff jpeg": saved(small, "TIFF", compression="jpeg"),
        "tiff fax": saved(small.convert("1"), "TIFF", compression="group4"),
        "tiff lab": saved(small.convert("LAB"), "TIFF"),
        "tiff float": saved(deep.convert("F"), "TIFF"),
        "avif": saved(small, "AVIF", exif=exif(6)),
        "avif frames": saved(small, "AVIF", **two),
    }


SEEDS = _seeds()
SMALL = DecodeLimits(max_pixels=1_000_000)


def attempt(data: bytes) -> None:
    with contextlib.suppress(ImageError):
        image = decode(data, limits=SMALL, scaled_for=config((4, 4)))
        assert image.rgb.mode == "RGB"
        assert min(image.rgb.size) >= 1


@settings(max_examples=300, deadline=None)
@given(head=st.sampled_from([b"", *(seed[:12] for seed in SEEDS.values())]), tail=st.binary(max_size=200))
@example(head=b"", tail=b"")
def test_arbitrary_bytes(head: bytes, tail: bytes) -> None:
    attempt(head + tail)


@pytest.mark.parametrize("name", SEEDS)
def test_damaged_files(name: str) -> None:
    seed, chance = SEEDS[name], random.Random(name)
    attempt(seed)
    for length in range(0, len(seed), max(1, len(seed) // 60)):
        attempt(seed[:length])
    for _ in range(250):
        damaged = bytearray(seed)
        reach = len(seed) if chance.random() < 0.5 else min(len(seed), 120)
        for _ in range(chance.choice((1, 1, 2, 4, 10))):
            damaged[chance.randrange(reach)] = chance.choice((0, 127, 128, 255, chance.randrange(256)))
        attempt(bytes(damaged))

"""Thumbnails are small, upright and clean; the file behind a hit is found, and nothing outside its root."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from photos import photo_paths
from PIL import Image, ImageCms
from unit_support import picture

from mcip_qdrant.errors import ImageError, Reason
from mcip_qdrant.hit import Hit
from mcip_qdrant.keys import encode_path, file_uri
from mcip_qdrant.thumbnail import picture_bytes, thumbnail


def _saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _hit(path: Path | bytes, key: str) -> Hit:
    return Hit("id", 0.5, file_uri(bytes(path)), {"key": key})


@pytest.mark.parametrize("side", [96, 176, 640])
@pytest.mark.parametrize("path", [photo_paths()[0], photo_paths()[3], photo_paths()[15]], ids=lambda path: path.stem)
def test_looks_like_the_photograph(path: Path, side: int) -> None:
    original = Image.open(path).convert("RGB")
    small = thumbnail(path.read_bytes(), side=side)
    shown = Image.open(io.BytesIO(small.jpeg))
    assert shown.size == (small.width, small.height)
    assert shown.format == "JPEG"
    assert max(shown.size) == min(side, max(original.size))
    assert abs(small.width / small.height - original.width / original.height) < 0.1
    reference = np.asarray(original.resize(shown.size, Image.Resampling.LANCZOS), dtype=np.float64)
    assert np.abs(np.asarray(shown, dtype=np.float64) - reference).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_and_without_metadata(orientation: int) -> None:
    turns = {
        1: (),
        2: (Image.Transpose.FLIP_LEFT_RIGHT,),
        3: (Image.Transpose.ROTATE_180,),
        4: (Image.Transpose.FLIP_TOP_BOTTOM,),
        5: (Image.Transpose.TRANSPOSE,),
        6: (Image.Transpose.ROTATE_90,),
        7: (Image.Transpose.TRANSVERSE,),
        8: (Image.Transpose.ROTATE_270,),
    }
    upright = Image.new("RGB", (400, 200), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 100, 100))
    stored = upright
    for turn in turns[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "where I live"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    small = thumbnail(_saved(stored, exif=exif, comment=b"a secret", icc_profile=profile), side=100)
    shown = Image.open(io.BytesIO(small.jpeg)).convert("RGB")
    assert shown.size == (100, 50)
    red, blue = shown.getpixel((8, 8)), shown.getpixel((90, 40))
    assert np.abs(np.subtract((red, blue), ((255, 0, 0), (0, 0, 255)))).max() < 60
    assert b"where I live" not in small.jpeg
    assert b"a secret" not in small.jpeg
    assert not Image.open(io.BytesIO(small.jpeg)).info.get("icc_profile")


def test_size_is_bounded_whatever_it_shows() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    assert len(thumbnail(_saved(Image.fromarray(noise), "PNG"), side=176).jpeg) < 40_000


def test_extreme_shapes_and_small_pictures() -> None:
    assert thumbnail(_saved(Image.new("RGB", (20_000, 2)), "PNG"), side=100).width == 100
    tiny = thumbnail(_saved(Image.new("L", (3, 2), 77), "PNG"), side=100)
    assert (tiny.width, tiny.height) == (3, 2)


def test_large_jpegs_are_decoded_at_reduced_size() -> None:
    """Decoding 24 megapixels in full takes some ten times as long."""
    photo = Image.open(photo_paths()[0]).convert("RGB").resize((6000, 4000))
    data = _saved(photo, quality=85)
    start = time.perf_counter()
    Image.open(io.BytesIO(data)).load()
    full = time.perf_counter() - start
    start = time.perf_counter()
    thumbnail(data, side=176)
    assert time.perf_counter() - start < full


@pytest.mark.parametrize("data", [b"", b"no picture", _saved(Image.new("RGB", (64, 64), "red"))[:300]])
def test_damaged_pictures_are_image_errors(data: bytes) -> None:
    with pytest.raises(ImageError):
        thumbnail(data, side=100)


def test_found_by_key_and_by_uri(tmp_path: Path) -> None:
    (tmp_path / "a" / "2020").mkdir(parents=True)
    odd = os.fsencode(tmp_path) + b"/a/2020/100% \xff.png"
    picture(odd, (9, 8, 7))
    hit = _hit(odd, "a/2020/" + encode_path(b"100% \xff.png"))
    expected = Path(os.fsdecode(odd)).read_bytes()
    assert picture_bytes(hit, {"a": tmp_path / "a"}) == expected
    assert picture_bytes(hit, None) == expected
    moved = Hit("id", 0.5, "file:///elsewhere/2020/x.png", hit.payload)
    assert picture_bytes(moved, {"a": tmp_path / "a"}) == expected
    foreign = Hit("id", 0.5, hit.uri, {})
    assert picture_bytes(foreign, None) == expected


@pytest.mark.parametrize(
    "key",
    [
        "a/../secret.png",
        "a/sub/../../secret.png",
        "a/%2e%2e/secret.png",
        "a/..%2fsecret.png",
        "a//{outside}",
        "a/link.png",
        "a/folder/secret.png",
        "b/secret.png",
        "../secret.png",
        "/secret.png",
        "a",
        "",
        "secret.png",
    ],
)
def test_nothing_outside_the_roots(tmp_path: Path, key: str) -> None:
    outside = tmp_path / "secret.png"
    picture(outside, (1, 2, 3))
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "link.png").symlink_to(outside)
    (tmp_path / "a" / "folder").symlink_to(tmp_path)
    hit = _hit(outside, key.replace("{outside}", str(outside)))
    with pytest.raises(ImageError) as caught:
        picture_bytes(hit, {"a": tmp_path / "a"})
    assert caught.value.reason == Reason.OUTSIDE_ROOT


@pytest.mark.parametrize("uri", ["", "http://127.0.0.1:9/x.png", "file://relative.png", "s3://bucket/x.png", "/x.png"])
def test_no_other_place_is_asked(uri: str) -> None:
    with pytest.raises(ImageError) as caught:
        picture_bytes(Hit("id", 0.5, uri, {"key": "a/x.png"}), None)
    assert caught.value.reason == Reason.OUTSIDE_ROOT


def test_a_link_inside_the_archive_that_leads_out_is_not_followed_by_uri(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png", (1, 2, 3))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ImageError) as caught:
        picture_bytes(_hit(tmp_path / "a" / "link.png", "a/link.png"), None)
    assert caught.value.reason == Reason.OUTSIDE_ROOT


def test_pipes_devices_and_large_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name, limit, reason in (("pipe.png", 100, Reason.NOT_A_FILE), ("big.png", 10, Reason.TOO_LARGE)):
        if not (tmp_path / name).exists():
            (tmp_path / name).write_bytes(bytes(100))
        with pytest.raises(ImageError) as caught:
            picture_bytes(_hit(tmp_path / name, f"a/{name}"), {"a": tmp_path}, max_bytes=limit)
        assert caught.value.reason == reason

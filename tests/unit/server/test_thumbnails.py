"""Thumbnails show the collection's own images and nothing else of the disk."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mcip_qdrant.server import thumbnails
from mcip_qdrant.server.batching import OverloadedError
from mcip_qdrant.server.problems import NoCollectionError
from mcip_qdrant.server.settings import Limits
from mcip_qdrant.server.thumbnails import SIDE, Thumbnails
from mcip_qdrant.thumbnail import thumbnail as make_small


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An archive `photos/` with pictures in it, and a secret picture beside it."""
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for name, colour in (("photos/a.jpg", "red"), ("photos/deep/b.png", "green"), ("secret.jpg", "blue")):
        Image.new("RGB", (900, 600), colour).save(tmp_path / name)
    return tmp_path


def payload(home: Path, key: str, shown: str | None = None) -> dict[str, Any]:
    """What a point would say: the key, and the digest of the file `shown` (default: the one the key means)."""
    path = home / (shown or key)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "0" * 64
    return {"source": "photos", "key": key, "sha256": digest}


def make(home: Path, what: dict[str, Any], limits: Limits | None = None) -> Image.Image:
    """The thumbnail, decoded."""

    async def main() -> bytes:
        return await Thumbnails({"photos": home / "photos"}, limits or Limits()).of(what)

    return Image.open(io.BytesIO(asyncio.run(main())))


def test_it_is_small_and_shows_the_picture(home: Path) -> None:
    small = make(home, payload(home, "photos/deep/b.png"))
    assert (small.format, small.size) == ("JPEG", (SIDE, 213))
    red, green, blue = small.convert("RGB").getpixel((100, 100))  # type: ignore[misc]
    assert abs(red) + abs(green - 128) + abs(blue) < 12


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("photos/../secret.jpg", "secret.jpg"),
        ("photos/deep/../../secret.jpg", "secret.jpg"),
        ("photos/%2E%2E/secret.jpg", "secret.jpg"),
        ("photos/..%2Fsecret.jpg", "secret.jpg"),
        ("photos//etc/passwd", "/etc/passwd"),
        ("photos/", None),
        ("photos/deep", None),
        ("photos/nothing.jpg", None),
        ("photos/a.jpg%00.png", "photos/a.jpg"),
        ("other/a.jpg", "photos/a.jpg"),
        ("photos/\ud800.jpg", None),
    ],
)
def test_nothing_outside_the_root_is_shown(home: Path, key: str, shown: str | None) -> None:
    with pytest.raises(NoCollectionError):
        make(home, payload(home, key, shown))


def test_links_may_lead_around_inside_but_not_out(home: Path) -> None:
    (home / "photos" / "inside.jpg").symlink_to(home / "photos" / "a.jpg")
    (home / "photos" / "outside.jpg").symlink_to(home / "secret.jpg")
    (home / "photos" / "up").symlink_to(home)
    assert make(home, payload(home, "photos/inside.jpg")).size[0] == SIDE
    for key in ("photos/outside.jpg", "photos/up/secret.jpg"):
        with pytest.raises(NoCollectionError, match="outside"):
            make(home, payload(home, key))


def test_a_named_pipe_does_not_hang_it(home: Path) -> None:
    os.mkfifo(home / "photos" / "pipe.jpg")
    with pytest.raises(NoCollectionError, match="not a regular file"):
        make(home, payload(home, "photos/pipe.jpg"))


def test_a_file_that_was_exchanged_since_is_not_shown(home: Path) -> None:
    before = payload(home, "photos/a.jpg")
    (home / "secret.jpg").rename(home / "photos" / "a.jpg")
    with pytest.raises(NoCollectionError, match="changed since"):
        make(home, before)


def test_what_is_no_picture_is_not_shown(home: Path) -> None:
    (home / "photos" / "a.jpg").write_text("root:x:0:0")
    with pytest.raises(NoCollectionError, match="cannot be shown"):
        make(home, payload(home, "photos/a.jpg"))


def test_pixels_are_limited(home: Path) -> None:
    with pytest.raises(NoCollectionError, match="pixels"):
        make(home, payload(home, "photos/a.jpg"), Limits(max_pixels=1000))


def test_nothing_of_the_original_but_pixels_gets_out(home: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "home address"
    Image.new("RGB", (400, 300), "red").save(home / "photos" / "a.jpg", exif=exif, comment=b"secret note")
    small = make(home, payload(home, "photos/a.jpg"))
    assert not small.getexif()
    assert "comment" not in small.info


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"source": ["photos"], "key": "photos/a.jpg", "sha256": "0"},
        {"source": "photos", "key": 3, "sha256": "0"},
        {"source": "photos", "key": "photos/a.jpg"},
        {"source": "unknown", "key": "unknown/a.jpg", "sha256": "0" * 64},
    ],
)
def test_points_that_others_wrote_have_none(home: Path, odd: dict[str, Any]) -> None:
    assert Thumbnails({"photos": home / "photos"}, Limits()).version(odd) is None
    with pytest.raises(NoCollectionError, match="--source-root"):
        make(home, odd)


def test_it_is_made_once_and_kept_within_bounds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "_KEPT_BYTES", 1000)
    one, other = payload(home, "photos/a.jpg"), payload(home, "photos/deep/b.png")

    async def main() -> None:
        made = Thumbnails({"photos": home / "photos"}, Limits())
        calls: list[bytes] = []
        monkeypatch.setattr(
            thumbnails, "thumbnail", lambda data, **options: calls.append(data) or make_small(data, **options)
        )
        first = await made.of(one)
        assert await made.of(one) == first
        assert len(calls) == 1, "from memory"
        assert len(first) < 1000 < len(first) + len(await made.of(other))
        await made.of(one)
        assert len(calls) == 3, "had to make room"

    asyncio.run(main())


def test_what_is_kept_is_shown_only_while_its_file_is_the_one_that_was_ingested(home: Path) -> None:
    one = payload(home, "photos/a.jpg")
    file = home / "photos" / "a.jpg"

    async def main() -> None:
        made = Thumbnails({"photos": home / "photos"}, Limits())
        first = await made.of(one)
        file.rename(home / "elsewhere.jpg")
        with pytest.raises(NoCollectionError, match="cannot be shown"):
            await made.of(one)
        (home / "secret.jpg").rename(file)
        with pytest.raises(NoCollectionError, match="changed since"):
            await made.of(one)
        (home / "elsewhere.jpg").rename(file)
        assert await made.of(one) == first

    asyncio.run(main())


def test_too_many_at_once_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "_WAITING", 2)

    async def main() -> list[Any]:
        made = Thumbnails({"photos": home / "photos"}, Limits())
        what = payload(home, "photos/a.jpg")
        return await asyncio.gather(*(made.of(what) for _ in range(5)), return_exceptions=True)

    answers = asyncio.run(main())
    assert [isinstance(answer, OverloadedError) for answer in answers] == [False, False, True, True, True]

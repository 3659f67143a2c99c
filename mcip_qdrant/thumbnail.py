"""The picture behind a hit, found without leaving its source's folder, and small copies of it to show."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mcip_qdrant.decode import DecodeLimits, decode
from mcip_qdrant.errors import ImageError, Reason
from mcip_qdrant.hit import Hit
from mcip_qdrant.keys import ImageRef, decode_path, encode_path, path_from_uri
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.read import FileState, read_image, stat_image

_QUALITY = 78
_LIMITS = DecodeLimits()


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small upright JPEG without any metadata of the original, `width` x `height` pixels."""

    jpeg: bytes
    width: int
    height: int


def thumbnail(data: bytes, *, side: int, limits: DecodeLimits = _LIMITS) -> Thumbnail:
    """A small copy of a picture as a JPEG; arguments and errors as `small_picture`."""
    small = small_picture(data, side=side, limits=limits)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return Thumbnail(stream.getvalue(), *small.size)


def small_picture(data: bytes, *, side: int, limits: DecodeLimits = _LIMITS) -> Image.Image:
    """An RGB copy whose longer side has at most `side` pixels; smaller pictures are not enlarged.

    Args:
        data: the whole image file. It is decoded by the image rules (`mcip_qdrant.decode`): turned upright, alpha on white.

    Raises:
        ImageError: not a readable picture.
    """
    fit = Preprocess((side, side), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resize_mode="longest")
    # A copy: `thumbnail` works in place, and decoding may hand out a picture that others hold too.
    small = decode(data, limits=limits, scaled_for=fit).rgb.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    # A picture of its own, because Pillow would save comments and profiles that came with the original.
    clean = Image.new("RGB", small.size)
    clean.paste(small)
    return clean


def picture_bytes(hit: Hit, roots: Mapping[str, Path] | None, *, max_bytes: int = _LIMITS.max_bytes) -> bytes:
    """Read the file of a hit.

    Args:
        roots: source name -> its folder here. Nothing outside these folders is read, whatever key or uri the payload claims and
            wherever symbolic links lead. None: the folder that the uri itself implies, for collections that are trusted.

    Raises:
        ImageError: not below a known root (OUTSIDE_ROOT), gone, not a regular file, too large, or unreadable.
    """
    root, ref = _located(hit, roots)
    return read_image(root, ref, max_bytes=max_bytes).data


def picture_state(hit: Hit, roots: Mapping[str, Path] | None) -> FileState | None:
    """What the file of a hit is like now, by its size and time alone; None where it cannot be examined.

    Raises:
        ImageError: not below a known root.
    """
    return stat_image(*_located(hit, roots))


def _located(hit: Hit, roots: Mapping[str, Path] | None) -> tuple[Path, ImageRef]:
    try:
        return _by_uri(hit) if roots is None else _by_key(hit, roots)
    except UnicodeEncodeError as exc:  # half a character, which no uri of ours holds
        raise ImageError(Reason.GONE, "no file can have this name") from exc


def _by_key(hit: Hit, roots: Mapping[str, Path]) -> tuple[Path, ImageRef]:
    source, slash, relative = hit.key.partition("/")
    if not slash or source not in roots:
        raise ImageError(Reason.OUTSIDE_ROOT, f"no folder is known for the source {source!r}")
    return Path(roots[source]), ImageRef(source, relative)


def _by_uri(hit: Hit) -> tuple[Path, ImageRef]:
    path = path_from_uri(hit.uri)
    if path is None or not path.startswith(b"/"):
        raise ImageError(Reason.OUTSIDE_ROOT, "the uri does not name a file of this machine")
    source, _, relative = hit.key.partition("/")
    tail = b"/" + decode_path(relative)
    if relative and path.endswith(tail):
        return Path(os.fsdecode(path.removesuffix(tail) or b"/")), ImageRef(source, relative)
    folder, _, name = path.rpartition(b"/")
    return Path(os.fsdecode(folder or b"/")), ImageRef("", encode_path(name))

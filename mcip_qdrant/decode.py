"""Compressed bytes -> RGB picture. The only place that touches untrusted image bytes.

The image rules (the manifest's `image_rules`; docs/adr says why):

* first frame or page, as Pillow shows it on opening;
* EXIF orientation applied (of XMP where EXIF has none);
* 16 bits per channel become 8 by keeping the high byte, for grey as for colour; 12-bit TIFF keeps its top 8 bits.
  32-bit integers are read as 16-bit values (clipped to 0..65535), floats as 0..1 if none is above 1, else as 0..255;
* palette, grey, CMYK, YCbCr and LAB become RGB before any resizing; alpha and colour keys are laid on white;
* ICC profiles are ignored.

`decode` raises `ImageError` and nothing else, whatever the bytes; pictures that are cut short are errors, not grey
bands (unless the process has set Pillow's own LOAD_TRUNCATED_IMAGES). Safe to call from many threads.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mcip_qdrant.errors import ImageError, Reason
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.preprocess import resized_size

FORMATS: Final = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""Formats read by default, as `PIL.Image.open(formats=)` names them. MPO, in which many phones save, opens as JPEG."""

_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT = 258, 262, 322, 323, 339  # TIFF tags
_GREY_STEPS: Final = {"L;2": 85, "L;4": 17}  # Pillow's raw modes


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What `decode` refuses to touch: files over `max_bytes`, pictures over `max_pixels`, formats not in `formats`.

    Pillow's own ceiling (twice `PIL.Image.MAX_IMAGE_PIXELS`) holds as well, where it is lower.
    """

    max_bytes: int = 256 * 1024 * 1024
    max_pixels: int = 89_478_485
    formats: tuple[str, ...] = FORMATS


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An upright RGB picture, and `width` x `height` of the full-size picture as displayed, in pixels.

    `rgb` is smaller only where scaled decoding made it so. `format` is Pillow's name ("JPEG", "MPO", "PNG", …).
    """

    rgb: Image.Image
    width: int
    height: int
    format: str


def decode(data: bytes, *, limits: DecodeLimits = DecodeLimits(), scaled_for: Preprocess | None = None) -> DecodedImage:
    """Decode one picture by the image rules above.

    Args:
        data: the whole file.
        limits: checked before any pixel is decoded.
        scaled_for: decode JPEGs at 1/2, 1/4 or 1/8 of their size, as long as both sides stay at least twice as long as
            this preprocessing resizes them to. Much faster for large photos, not bit-exact. None: every pixel.

    Raises:
        ImageError: with the reason EMPTY, NOT_AN_IMAGE, CORRUPT, TOO_LARGE, TOO_MANY_PIXELS or OUT_OF_MEMORY.
    """
    if not data:
        raise ImageError(Reason.EMPTY, "the file is empty")
    if len(data) > limits.max_bytes:
        raise ImageError(Reason.TOO_LARGE, f"the file has {len(data):,} bytes; the limit is {limits.max_bytes:,}")
    with _only_image_errors():
        image = _open(data, limits)
        _refuse_bombs(image, data, limits)
        full = image.size
        sideways = False
        if scaled_for is not None and image.format in {"JPEG", "MPO"}:
            sideways = _orientation(image) >= 5
            width, height = resized_size(*(full[::-1] if sideways else full), scaled_for)
            image.draft(None, (2 * height, 2 * width) if sideways else (2 * width, 2 * height))
        drafted = image.size != full
        rgb = _to_rgb(image)
        width, height = rgb.size if not drafted else full[::-1] if sideways else full
        return DecodedImage(rgb=rgb, width=width, height=height, format=image.format or "")


def to_rgb(image: Image.Image) -> Image.Image:
    """Bring an in-memory picture's current frame to upright RGB by the same rules; itself where nothing is to do.

    Raises:
        ImageError: it has no pixels, they cannot be read (CORRUPT), or memory ran out (OUT_OF_MEMORY).
    """
    with _only_image_errors():
        return _to_rgb(image)


def _open(data: bytes, limits: DecodeLimits) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=limits.formats)
    except UnidentifiedImageError:
        for name in limits.formats:
            accept = Image.OPEN[name][1]
            if accept is not None and accept(data[:16]) is True:
                raise ImageError(
                    Reason.CORRUPT,
                    f"the file begins like {name}, but its header is damaged or of a kind that Pillow does not know",
                ) from None
        message = f"not a picture in a format read here ({', '.join(limits.formats)})"
        raise ImageError(Reason.NOT_AN_IMAGE, message) from None


def _refuse_bombs(image: Image.Image, data: bytes, limits: DecodeLimits) -> None:
    """Small files that would cost much memory or time; called before any pixel is decoded."""
    tags = getattr(image, "tag_v2", {})  # a TIFF may wrap a small picture in one huge tile
    for width, height in (image.size, (tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0))):
        if width * height > limits.max_pixels:
            message = f"the picture has {width:,} x {height:,} pixels; the limit is {limits.max_pixels:,}"
            raise ImageError(Reason.TOO_MANY_PIXELS, message)
    # Every scan of a progressive JPEG walks over the whole picture, and may take no more than 30 bytes of the file.
    # Encoders write about ten; a video or metadata beside the picture holds the marker by chance every 64 KiB.
    if image.info.get("progressive") and data.count(b"\xff\xda") > 100 + len(data) // 16384:
        raise ImageError(Reason.CORRUPT, "a progressive JPEG of far more scans than any encoder writes")


def _to_rgb(image: Image.Image) -> Image.Image:
    if min(image.size) < 1:
        raise ImageError(Reason.CORRUPT, f"the picture has no pixels ({image.width} x {image.height})")
    # Before load, which forgets how many bits the file had.
    tiles = getattr(image, "tile", None)
    grey_step = _GREY_STEPS.get(tiles[0][3], 1) if tiles and image.format == "PNG" else 1
    image.load()
    # After load: PNG may keep its EXIF behind the pixels, and TIFF turns itself upright while loading.
    turn = _UPRIGHT.get(_orientation(image))
    if image.mode.startswith("I") or image.mode == "F":
        rgb = _eight_bits(image).convert("RGB")
    elif image.has_transparency_data:
        rgb = _on_white(image, grey_step)
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  damaged metadata raises anything; the picture itself may be sound
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _on_white(image: Image.Image, grey_step: int) -> Image.Image:
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int) and grey_step > 1:
        # PNG of 2 or 4 bits: Pillow spreads the pixels over 0..255, and leaves the key as it was.
        image = image.copy()
        image.info["transparency"] = key * grey_step
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # 16-bit PNG: Pillow keeps the high byte of the pixels but both of the key, and would compare the low one.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    canvas = Image.new("RGB", rgba.size, (255, 255, 255))
    canvas.paste(rgba, (0, 0), rgba)
    return canvas


def _eight_bits(image: Image.Image) -> Image.Image:
    """I;16 (any byte order), I and F -> L; Pillow's own conversion would clip at 255."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(_PHOTOMETRIC) == 0  # Pillow turns such TIFFs round where they have 8 bits or fewer
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
        levels = np.clip(values * (255.0 if values.max() <= 1.0 else 1.0), 0.0, 255.0)
        eight = np.rint(255.0 - levels if white_is_zero else levels)
    else:
        bits = tags.get(_BITS_PER_SAMPLE, (16,))
        if bits == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
            values = values.view(np.uint32)  # Pillow has signed ones only
        sixteen = np.clip(values, 0, 65535)
        eight = (65535 - sixteen if white_is_zero else sixteen) >> (4 if bits == (12,) else 8)
        key = image.info.get("transparency")
        if isinstance(key, int):
            eight = np.where(values == key, 255, eight)
    return Image.fromarray(np.clip(eight, 0, 255).astype(np.uint8))


class _InsideDecode(threading.local):
    """Stands in a warning filter where a module pattern does; matches only on a thread that is inside this module.

    Pillow warns about odd files (damaged EXIF, TIFF tags, APNG chunks, sizes) through `warnings`. To the user that is
    noise, and under `-W error` it would turn a readable picture into a failure. `warnings.catch_warnings` is no cure:
    it swaps the process-wide filter list, so two threads that decode at once restore each other's state. Here one
    filter is put at the front of the list and stays; on every thread that is not decoding it matches nothing, so the
    caller's own filters, and the caller's own use of Pillow, are as before. `warnings` needs only a `match` method.
    """

    active = False

    def match(self, _module: str) -> bool:
        return self.active


_INSIDE: Final = _InsideDecode()
_QUIET: Final = ("ignore", None, Warning, _INSIDE, 0)
_FILTERS_LOCK: Final = threading.Lock()


def _put_filter_first() -> None:
    filters = cast("list[object]", warnings.filters)
    if filters and filters[0] is _QUIET:
        return
    # First decode, or somebody has set filters or left a catch_warnings block since.
    with _FILTERS_LOCK:
        # In place and step by step: other threads read this list, and must find the filter at every moment.
        filters.insert(0, _QUIET)
        for index in range(len(filters) - 1, 0, -1):
            if filters[index] is _QUIET:
                del filters[index]


@contextmanager
def _only_image_errors() -> Iterator[None]:
    """Keep Pillow's warnings in, and turn whatever it raises into `ImageError`."""
    _put_filter_first()
    _INSIDE.active = True
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as exc:
        raise ImageError(Reason.TOO_MANY_PIXELS, str(exc)) from exc
    except Exception as exc:
        # On damaged bytes Pillow raises OSError, ValueError, SyntaxError, struct.error, IndexError and many more.
        if isinstance(exc, MemoryError) or (isinstance(exc, OSError) and "out of memory" in str(exc)):
            raise ImageError(Reason.OUT_OF_MEMORY, "not enough memory to decode the picture") from exc
        raise ImageError(Reason.CORRUPT, f"the picture is damaged: {exc or type(exc).__name__}") from exc
    finally:
        _INSIDE.active = False

"""Any form in which a program holds a picture -> upright RGB, by the same rules as at ingestion."""

from __future__ import annotations

import inspect
import os
import threading
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.errors import ImageError, InvalidQueryError, Reason

if TYPE_CHECKING:
    from PIL import Image

    from mcip_qdrant.decode import DecodeLimits

# Pillow reads the file of a picture at its first use, and threads that share one would read parts of it each.
_LOADING = threading.Lock()

ImageLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[np.uint8]"
)
"""A path, the bytes of an image file, a binary file object, a PIL image, or a uint8 array `[H, W, 3]` RGB or `[H, W]` grey."""


def rgb_image(image: ImageLike) -> Image.Image:
    """A picture in any accepted form as a PIL RGB image, always exactly decoded.

    A file object is read from where it stands and stays open. Bytes and pixels are limited as at ingestion (`DecodeLimits`).

    Raises:
        ImageError: not a readable image.
        InvalidQueryError: an array of another shape or dtype, a file object in text mode, or no picture at all.
    """
    from PIL import Image

    from mcip_qdrant.decode import DecodeLimits, decode, to_rgb

    limits = DecodeLimits()
    if isinstance(image, Image.Image):
        _refuse_too_many(*image.size, limits)
        with _LOADING:
            return to_rgb(image)
    if isinstance(image, np.ndarray):
        _check_array(image)
        _refuse_too_many(image.shape[1], image.shape[0], limits)
        return Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode(bytes(image)).rgb
    if isinstance(image, (str, os.PathLike)):
        data = _file_bytes(image, limits)
        try:
            return decode(data).rgb
        except ImageError as exc:
            raise ImageError(exc.reason, f"{os.fspath(image)}: {exc}") from exc
    return decode(_stream_bytes(image, limits)).rgb


def is_picture(what: object) -> bool:
    """Whether something is a picture by its type alone; a str is not, because in a mix it is words."""
    if isinstance(what, str):
        return False  # before Pillow is loaded, which a process that only encodes text never needs
    from PIL import Image

    known = (os.PathLike, bytes, bytearray, memoryview, np.ndarray, Image.Image)
    return isinstance(what, known) or callable(getattr(what, "read", None))


def _file_bytes(path: str | os.PathLike[str], limits: DecodeLimits) -> bytes:
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 - os.PathLike, bytes within
            return _at_most(stream, limits, name=os.fspath(path))
    except FileNotFoundError as exc:
        raise ImageError(Reason.GONE, f"{os.fspath(path)}: no such file") from exc
    except OSError as exc:
        raise ImageError(Reason.UNREADABLE, f"{os.fspath(path)}: {exc.strerror or exc}") from exc
    except ValueError as exc:  # a NUL in the name
        raise ImageError(Reason.GONE, f"{os.fspath(path)!r}: no file can have this name") from exc


def _stream_bytes(stream: Any, limits: DecodeLimits) -> bytes:
    if not callable(getattr(stream, "read", None)):
        raise InvalidQueryError(
            "an image must be a path, the bytes of an image file, a binary file object, a PIL image or a uint8 array, "
            f"not {type(stream).__name__}"
        )
    name = str(getattr(stream, "name", "the file object"))
    try:
        data = _at_most(stream, limits, name=name)
    except InvalidQueryError:  # which is a ValueError as well
        raise
    except UnicodeDecodeError as exc:
        raise _text_mode(name) from exc
    except OSError as exc:
        raise ImageError(Reason.UNREADABLE, f"{name}: {exc.strerror or exc}") from exc
    except ValueError as exc:  # closed
        raise ImageError(Reason.UNREADABLE, f"{name}: {exc}") from exc
    if not data:
        raise ImageError(Reason.EMPTY, f"{name} is at its end, or empty; a file that was read before needs seek(0)")
    return data


def _at_most(stream: Any, limits: DecodeLimits, *, name: str) -> bytes:
    # Raw and network streams may return less than they were asked for.
    pieces, left = [], limits.max_bytes + 1
    while left > 0 and (piece := stream.read(min(left, 1 << 20))):
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            raise _no_bytes(name, piece)
        pieces.append(bytes(piece))
        left -= len(pieces[-1])
    if left <= 0:
        raise ImageError(Reason.TOO_LARGE, f"{name}: more than {limits.max_bytes} bytes, which is the limit")
    return b"".join(pieces)


def _no_bytes(name: str, piece: object) -> InvalidQueryError:
    if isinstance(piece, str):
        return _text_mode(name)
    if inspect.isawaitable(piece):
        if inspect.iscoroutine(piece):
            piece.close()  # or Python warns that nobody awaited it
        return InvalidQueryError(f"{name} is read asynchronously; give its bytes: await it first, `await file.read()`")
    return InvalidQueryError(f"{name} gives {type(piece).__name__} where bytes belong")


def _text_mode(name: str) -> InvalidQueryError:
    return InvalidQueryError(f"{name} gives text; open the image in binary mode ('rb')")


def _refuse_too_many(width: int, height: int, limits: DecodeLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageError(
            Reason.TOO_MANY_PIXELS, f"the picture has {width} x {height} pixels; the limit is {limits.max_pixels}"
        )


def _check_array(array: NDArray[Any]) -> None:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or array.size == 0:
        raise InvalidQueryError(
            f"an image array must be uint8 [H, W, 3] RGB or [H, W] grey, not {array.dtype} {list(array.shape)}"
        )

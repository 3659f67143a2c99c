"""`QueryEncoder`: text or a picture -> the vector for any Qdrant call."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.bundle import Bundle
from mcip_qdrant.encoder import EncoderSettings, ImageEncoder, TextEncoder
from mcip_qdrant.errors import ImageError, InvalidQueryError, Reason
from mcip_qdrant.manifest import Precision
from mcip_qdrant.session import Device

if TYPE_CHECKING:
    from PIL import Image

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]"

_BATCH = 16


class QueryEncoder:
    """Encodes texts and pictures into one space. Each tower is loaded at its first use, so a text-only process loads one graph.

    Safe to share between threads.
    """

    def __init__(self, bundle: Bundle, settings: EncoderSettings | None = None) -> None:
        self.bundle = bundle
        self._settings = settings or EncoderSettings()
        self._lock = threading.Lock()
        self._texts: TextEncoder | None = None
        self._images: ImageEncoder | None = None

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        device: str = "auto",
        precision: Precision | None = None,
        threads: int | None = None,
    ) -> Self:
        """Open a bundle directory for queries.

        Args:
            device: `auto`, `cpu` or `cuda[:N]`.
            precision: `fp32`, `fp16` or `int8`; default: fp16 on CUDA, fp32 on the CPU.
            threads: threads inside one operator; default: the processors this process may use.

        Raises:
            BundleError: no bundle there, or a damaged one.
            DeviceError: unknown device.
        """
        settings = EncoderSettings(device=Device.parse(device), precision=precision, threads=threads)
        return cls(Bundle.open(bundle), settings)

    def text(self, text: str) -> NDArray[np.float32]:
        """Encode one text to float32 `[D]`, L2 norm 1.

        Raises:
            InvalidQueryError: empty text.
        """
        vector: NDArray[np.float32] = self.texts([text])[0]
        return vector

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts to float32 `[N, D]`, L2 norm 1. Texts longer than the context length are cut.

        Raises:
            InvalidQueryError: an empty text, or no text at all.
        """
        if isinstance(texts, str):
            raise InvalidQueryError("texts() takes a list of texts; for one text use text()")
        if not texts or not all(text.strip() for text in texts):
            raise InvalidQueryError("a query text must not be empty")
        for text in texts:
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise InvalidQueryError(
                    f"{text!r} is not valid text: it holds bytes that are not UTF-8, or half a character"
                )
        encoder = self._text_encoder()
        parts = [encoder.encode(texts[start : start + _BATCH * 4]) for start in range(0, len(texts), _BATCH * 4)]
        return np.concatenate(parts)

    def image(self, image: ImageLike) -> NDArray[np.float32]:
        """Encode one picture to float32 `[D]`, L2 norm 1.

        Args:
            image: a path, the bytes of an image file, a PIL image, or a uint8 array `[H, W, 3]` RGB or `[H, W]` grey.

        Raises:
            ImageError: not a readable image.
        """
        vector: NDArray[np.float32] = self.images([image])[0]
        return vector

    def images(self, images: Sequence[ImageLike]) -> NDArray[np.float32]:
        """Encode pictures to float32 `[N, D]`, L2 norm 1.

        Raises:
            ImageError: one of them is not a readable image.
            InvalidQueryError: no image at all.
        """
        if isinstance(images, (str, bytes, os.PathLike)) or len(images) == 0:
            raise InvalidQueryError("images() takes a list of at least one image; for one image use image()")
        encoder = self._image_encoder()
        parts = []
        for start in range(0, len(images), _BATCH):
            pixels = [self._pixels(image) for image in images[start : start + _BATCH]]
            parts.append(encoder.encode(np.stack(pixels)))
        return np.concatenate(parts)

    def _pixels(self, image: ImageLike) -> NDArray[np.uint8]:
        from mcip_qdrant.preprocess import preprocess

        return preprocess(rgb_image(image), self.bundle.manifest.preprocess)

    def _text_encoder(self) -> TextEncoder:
        with self._lock:
            if self._texts is None:
                self._texts = TextEncoder(self.bundle, self._settings)
            return self._texts

    def _image_encoder(self) -> ImageEncoder:
        with self._lock:
            if self._images is None:
                self._images = ImageEncoder(self.bundle, self._settings)
            return self._images


def rgb_image(image: ImageLike) -> Image.Image:
    """A picture in any accepted form as a PIL RGB image, by the same rules as at ingestion (always exact decoding).

    Raises:
        ImageError: not a readable image.
        InvalidQueryError: an array of another shape or dtype.
    """
    from PIL import Image

    from mcip_qdrant.decode import DecodeLimits, decode, to_rgb

    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        return Image.fromarray(_checked_array(image)).convert("RGB")
    if isinstance(image, bytes):
        return decode(image).rgb
    try:
        size = Path(image).stat().st_size
        if size > DecodeLimits().max_bytes:
            raise ImageError(Reason.TOO_LARGE, f"{image}: {size} bytes; the limit is {DecodeLimits().max_bytes}")
        data = Path(image).read_bytes()
    except FileNotFoundError as exc:
        raise ImageError(Reason.GONE, f"{image}: no such file") from exc
    except OSError as exc:
        raise ImageError(Reason.UNREADABLE, f"{image}: {exc.strerror}") from exc
    try:
        return decode(data).rgb
    except ImageError as exc:
        raise ImageError(exc.reason, f"{image}: {exc}") from exc


def _checked_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or array.size == 0:
        raise InvalidQueryError(
            f"an image array must be uint8 [H, W, 3] RGB or [H, W] grey, not {array.dtype} {list(array.shape)}"
        )
    return np.ascontiguousarray(array)

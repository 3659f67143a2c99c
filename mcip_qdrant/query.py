"""`QueryEncoder`: text, a picture or a mix of both -> the vector for any Qdrant call."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.bundle import Bundle
from mcip_qdrant.encoder import EncoderSettings, ImageEncoder, TextEncoder
from mcip_qdrant.errors import BundleError, ClosedError, InvalidQueryError, TextCutWarning
from mcip_qdrant.manifest import Precision
from mcip_qdrant.mix import checked_weights, listed, weighted_sum
from mcip_qdrant.picture import ImageLike, is_picture, rgb_image
from mcip_qdrant.session import Device
from mcip_qdrant.text import is_unicode

MixPart: TypeAlias = "tuple[ImageLike, float]"
"""`(what, weight)`: a str is words, anything else a picture. A negative weight leads away from it."""

__all__ = ["ImageLike", "MixPart", "QueryEncoder"]

_Tower = TypeVar("_Tower")
_TEXT_BATCH, _IMAGE_BATCH = 64, 16


class QueryEncoder:
    """Encodes texts and pictures into one space. Each tower is loaded at its first use, so a text-only process loads one graph.

    Safe to share between threads. A pickle holds the bundle's path and the settings, nothing else: a worker process opens
    the bundle again, and refuses one that was exchanged for another model's meanwhile.
    """

    def __init__(self, bundle: Bundle, settings: EncoderSettings | None = None) -> None:
        self.bundle = bundle
        self._settings = settings or EncoderSettings()
        self._texts = _Lazy(lambda: TextEncoder(self.bundle, self._settings))
        self._images = _Lazy(lambda: ImageEncoder(self.bundle, self._settings))

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        device: str = "auto",
        precision: Precision | None = None,
        threads: int | None = None,
    ) -> Self:
        """Open a bundle directory for queries. Loads no graph yet.

        Args:
            device: `auto`, `cpu` or `cuda[:N]`.
            precision: `fp32`, `fp16` or `int8`; default: fp16 on CUDA, fp32 on the CPU. With int8, the other items of a batch
                change a vector a little (cosine about 0.999), because activations are scaled over the whole batch.
            threads: threads inside one operator; default: the processors this process may use.

        Raises:
            BundleError: no bundle there, or a damaged one.
            DeviceError: unknown device.
        """
        settings = EncoderSettings(device=Device.parse(device), precision=precision, threads=threads)
        return cls(Bundle.open(bundle), settings)

    @property
    def context_length(self) -> int:
        """L: how many tokens of a text count, its start and end marks included."""
        return self.bundle.manifest.tokenizer.context_length

    def text(self, text: str) -> NDArray[np.float32]:
        """Encode one text to float32 `[D]`, L2 norm 1. Warns as `texts` does.

        Raises:
            InvalidQueryError: empty text.
        """
        vector: NDArray[np.float32] = self.texts([text])[0]
        return vector

    def texts(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Encode texts to float32 `[N, D]`, L2 norm 1; up to 64 of them are one run of the graph.

        A text longer than the context length is cut, with a `TextCutWarning`.

        Raises:
            InvalidQueryError: an empty text, or no text at all.
            ClosedError: after `close()`.
        """
        texts = _checked_texts(texts)
        encoder = self._texts.get()
        tokens = encoder.tokenizer.encode(texts)
        if tokens.truncated.any():
            self._warn_of_cut(texts, tokens.truncated)
        return self.encode_ids(tokens.ids)

    def encode_ids(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Encode texts that `bundle.tokenizer()` has made int64 `[N, L]` of, N at least 1, to float32 `[N, D]`, L2 norm 1.

        Raises:
            ClosedError: after `close()`.
        """
        encoder = self._texts.get()
        starts = range(0, len(token_ids), _TEXT_BATCH)
        return np.concatenate([encoder.encode_ids(token_ids[start : start + _TEXT_BATCH]) for start in starts])

    def image(self, image: ImageLike) -> NDArray[np.float32]:
        """Encode one picture to float32 `[D]`, L2 norm 1.

        Args:
            image: a path, the bytes of an image file, a binary file object, a PIL image, or a uint8 array `[H, W, 3]` RGB or
                `[H, W]` grey.

        Raises:
            ImageError: not a readable image.
        """
        vector: NDArray[np.float32] = self.images([image])[0]
        return vector

    def images(self, images: Iterable[ImageLike]) -> NDArray[np.float32]:
        """Encode pictures to float32 `[N, D]`, L2 norm 1; up to 16 of them are one run of the graph.

        Raises:
            ImageError: one of them is not a readable image.
            InvalidQueryError: no image at all.
            ClosedError: after `close()`.
        """
        if isinstance(images, str) or is_picture(images) or not (images := listed("images", images)):
            raise InvalidQueryError("images() takes a list of at least one image; for one image use image()")
        encoder = self._images.get()
        parts = []
        for start in range(0, len(images), _IMAGE_BATCH):
            pixels = [self._pixels(image) for image in images[start : start + _IMAGE_BATCH]]
            parts.append(encoder.encode(np.stack(pixels)))
        return np.concatenate(parts)

    def mix(self, *parts: MixPart) -> NDArray[np.float32]:
        """Encode a weighted mix of words and pictures to float32 `[D]`, L2 norm 1.

        `v = s / |s|` with `s = w_1 * v_1 + w_2 * v_2 + …`, where `v_i` is the unit vector of part i: only the ratios of the
        weights count, and a negative weight leads away from its part.

        Args:
            parts: `(what, weight)` each. A str is words; a picture is a `Path`, bytes, file object, PIL image or array.

        Raises:
            InvalidQueryError: no part, weights that are not finite or all zero, or parts that cancel each other out.
            ImageError: a picture cannot be read.
        """
        vector: NDArray[np.float32] = self.mixes([parts])[0]
        return vector

    def mixes(self, mixes: Iterable[Iterable[MixPart]]) -> NDArray[np.float32]:
        """Encode several mixes to float32 `[N, D]`, all their texts at once and all their pictures at once.

        Raises:
            InvalidQueryError, ImageError: as `mix`.
        """
        checked = [_checked_parts(parts) for parts in listed("mixes", mixes)]
        if not checked:
            raise InvalidQueryError("mixes() takes a list of at least one mix; for one mix use mix()")
        weights = [checked_weights([weight for _, weight in parts]) for parts in checked]
        whats = [what for parts in checked for what, _ in parts]
        are_pictures = [is_picture(what) for what in whats]
        for what, picture in zip(whats, are_pictures, strict=True):
            if not picture and not isinstance(what, str):
                raise InvalidQueryError(f"a part of a mix must be words or a picture, not {type(what).__name__}")
        vectors = np.empty((len(whats), self.bundle.embedding_dim), dtype=np.float32)
        pictures = np.array(are_pictures, dtype=bool)
        if not pictures.all():
            vectors[~pictures] = self.texts([what for what in whats if isinstance(what, str)])
        if pictures.any():
            vectors[pictures] = self.images([what for what in whats if not isinstance(what, str)])
        ends = np.cumsum([len(one) for one in weights])[:-1]
        mixed = [weighted_sum(part, one) for part, one in zip(np.split(vectors, ends), weights, strict=True)]
        return np.stack(mixed)

    def close(self) -> None:
        """Let go of the graphs. A call that runs in another thread ends as usual; later ones raise `ClosedError`."""
        self._texts.close()
        self._images.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., QueryEncoder], tuple[Any, ...]]:
        if self._texts.closed:
            raise ClosedError("a QueryEncoder that was closed cannot be pickled")
        return _reopen, (type(self), str(self.bundle.directory.absolute()), self.bundle.space_id, self._settings)

    def _pixels(self, image: ImageLike) -> NDArray[np.uint8]:
        from mcip_qdrant.preprocess import preprocess

        return preprocess(rgb_image(image), self.bundle.manifest.preprocess)

    def _warn_of_cut(self, texts: Sequence[str], cut: NDArray[np.bool_]) -> None:
        first = texts[int(cut.argmax())]
        start = first if len(first) <= 40 else first[:40] + "…"
        warnings.warn(
            f"{int(cut.sum())} of {len(texts)} texts cut: only the first {self.context_length} tokens, start and end marks included, "
            f"count for this model ({start!r}, {len(first)} characters)",
            TextCutWarning,
            stacklevel=_first_frame_outside(),
        )


class _Lazy(Generic[_Tower]):
    """Something made at its first use, once, whichever thread comes first, and never again after `close`."""

    def __init__(self, make: Callable[[], _Tower]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: _Tower | None = None
        self.closed = False

    def get(self) -> _Tower:
        with self._lock:
            if self.closed:
                raise ClosedError("this QueryEncoder was closed; open the bundle again with QueryEncoder.open")
            if self._made is None:
                self._made = self._make()
            return self._made

    def close(self) -> None:
        with self._lock:
            self._made, self.closed = None, True


def _reopen(kind: type[QueryEncoder], directory: str, space_id: str, settings: EncoderSettings) -> QueryEncoder:
    bundle = Bundle.open(directory)
    if bundle.space_id != space_id:
        raise BundleError(
            f"bundle {directory} is now {bundle.manifest.model} (space_id {bundle.space_id[:12]}), not the model that this QueryEncoder "
            f"was pickled with (space_id {space_id[:12]}); put the old bundle back, or open the new one where the encoder was made"
        )
    return kind(bundle, settings)


def _checked_texts(given: Iterable[str]) -> list[str]:
    if isinstance(given, str):
        raise InvalidQueryError("texts() takes a list of texts; for one text use text()")
    texts = listed("texts", given)
    if not texts:
        raise InvalidQueryError("texts() takes a list of at least one text")
    for text in texts:
        if not isinstance(text, str):
            raise InvalidQueryError(f"a query text must be a str, not {type(text).__name__}")
        if not text.strip():
            raise InvalidQueryError("a query text must not be empty")
        if not is_unicode(text):
            raise InvalidQueryError(
                f"{text[:200]!r} is not valid text: it holds bytes that are not UTF-8, or half a character"
            )
    return texts


def _checked_parts(given: Iterable[MixPart]) -> list[MixPart]:
    parts = listed("a mix", given)
    for part in parts:
        if not isinstance(part, (tuple, list)) or len(part) != 2:
            raise InvalidQueryError(
                f'each part of a mix is a pair (what, weight), such as ("people", -0.4), not {part!r}'
            )
    return parts


def _first_frame_outside() -> int:
    """`stacklevel` for a warning of the caller's: the first frame that is not this package's, so that it names the user's line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).split(".")[0] == "mcip_qdrant":
        level, frame = level + 1, frame.f_back
    return level

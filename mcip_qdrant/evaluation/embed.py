"""Paths and texts -> vectors: decoded ahead of the encoder, through the cache, each failure accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL
from numpy.typing import NDArray

import mcip_qdrant
from mcip_qdrant.cpus import available_cpus
from mcip_qdrant.errors import ImageError, Reason, SourceError
from mcip_qdrant.evaluation.cache import VectorCache, image_key, text_key
from mcip_qdrant.evaluation.model import Model
from mcip_qdrant.evaluation.preparation import Preparation, prepare
from mcip_qdrant.evaluation.rows import RowWriter
from mcip_qdrant.evaluation.similarity import Rows
from mcip_qdrant.picture import rgb_image
from mcip_qdrant.text import is_unicode

_BATCH: Final = 32
_TEXTS: Final = 256

# Either decides pixels: a new version of it is a new identity.
_MADE_BY: Final = f"mcip-qdrant {mcip_qdrant.__version__}, Pillow {PIL.__version__}"


@dataclass(frozen=True, slots=True)
class Failure:
    """One image that could not be embedded, and why."""

    path: Path
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class EmbeddedImages:
    """Vectors of those images that could be embedded, in order: float32 `[kept.sum(), D]`. `kept` is bool `[N]`."""

    vectors: Rows
    kept: NDArray[np.bool_]
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class Watch:
    """Callbacks for people who wait: `begin(what, how many)`, then `advance(items)`."""

    begin: Callable[[str, int], object] = lambda _what, _total: None
    advance: Callable[[int], object] = lambda _items: None


@dataclass(slots=True)
class Embedder:
    """One model with one preparation, and the cache of what it gave before (None: no cache)."""

    model: Model
    preparation: Preparation = "open_clip"
    cache: Path | None = None
    watch: Watch = field(default_factory=Watch)

    def images(self, paths: Sequence[Path], what: str = "images") -> EmbeddedImages:
        """Embed image files. One that cannot be read is left out and accounted for.

        Raises:
            SourceError: none of them can be read.
        """
        self.watch.begin(what, len(paths))
        writer = RowWriter(len(paths), self.model.embedding_dim, folder=self._folder())
        kept = np.zeros(len(paths), dtype=bool)
        failures: list[Failure] = []
        cache = self._open_cache(f"images.{self.preparation}")
        try:
            with ThreadPoolExecutor(available_cpus()) as pool:
                for start, batch in self._ahead(paths, cache, pool):
                    vectors = self._encoded(batch, cache)
                    for place, outcome in enumerate(vectors, start):
                        if isinstance(outcome, Failure):
                            failures.append(outcome)
                        else:
                            kept[place] = True
                            writer.add(outcome[None])
                    self.watch.advance(len(batch))
        finally:
            if cache is not None:
                cache.close()
        if len(paths) and not kept.any():
            raise SourceError(f"none of the {len(paths)} images can be read; the first: {failures[0].message}")
        return EmbeddedImages(writer.finish(), kept, tuple(failures))

    def texts(self, texts: Sequence[str], what: str = "texts") -> Rows:
        """Embed texts: float32 `[N, D]`.

        Raises:
            SourceError: a text that is no text.
        """
        if bad := next((text for text in texts if not is_unicode(text)), None):
            raise SourceError(f"{bad!r} is not valid text: it holds half a character")
        self.watch.begin(what, len(texts))
        writer = RowWriter(len(texts), self.model.embedding_dim, folder=self._folder())
        cache = self._open_cache("texts")
        try:
            for start in range(0, len(texts), _TEXTS):
                batch = texts[start : start + _TEXTS]
                keys = [text_key(text, _MADE_BY) for text in batch]
                known = cache.get(keys) if cache is not None else {}
                new = {key: text for key, text in zip(keys, batch, strict=True) if key not in known}
                if new:
                    made = dict(zip(new, self.model.encode_texts(list(new.values())), strict=True))
                    if cache is not None:
                        cache.put(made)
                    known |= made
                writer.add(np.stack([known[key] for key in keys]))
                self.watch.advance(len(batch))
        finally:
            if cache is not None:
                cache.close()
        return writer.finish()

    def _folder(self) -> Path | None:
        return self.cache if self.cache is not None and self.cache.is_dir() else None

    def _open_cache(self, kind: str) -> VectorCache | None:
        if self.cache is None:
            return None
        path = self.cache / self.model.space_id / f"{kind}.{self.model.variant}.sqlite"
        return VectorCache(path, self.model.embedding_dim)

    def _ahead(
        self, paths: Sequence[Path], cache: VectorCache | None, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, list[_Wanted]]]:
        """Batches in order, the next one being decoded while the caller encodes."""
        waiting: tuple[int, list[_Wanted]] | None = None
        for start in range(0, len(paths), _BATCH):
            batch = self._wanted(paths[start : start + _BATCH], cache, pool)
            if waiting is not None:
                yield waiting
            waiting = (start, batch)
        if waiting is not None:
            yield waiting

    def _wanted(self, paths: Sequence[Path], cache: VectorCache | None, pool: ThreadPoolExecutor) -> list[_Wanted]:
        keys = [_key(path) for path in paths]
        known = cache.get([key for key in keys if key is not None]) if cache is not None else {}
        return [
            _Wanted(path, key, known[key], None)
            if key in known
            else _Wanted(path, key, None, pool.submit(self._pixels, path))
            for path, key in zip(paths, keys, strict=True)
        ]

    def _pixels(self, path: Path) -> NDArray[np.uint8] | Failure:
        try:
            return prepare(rgb_image(path), self.model.preprocess, self.preparation)
        except ImageError as exc:
            return Failure(path, exc.reason, str(exc))

    def _encoded(self, batch: list[_Wanted], cache: VectorCache | None) -> Iterator[NDArray[np.float32] | Failure]:
        results: list[Any] = [wanted.vector if wanted.pixels is None else wanted.pixels.result() for wanted in batch]
        new = [
            place
            for place, wanted in enumerate(batch)
            if wanted.pixels is not None and not isinstance(results[place], Failure)
        ]
        if new:
            made = self.model.encode_pixels(np.stack([results[place] for place in new]))
            store: dict[bytes, NDArray[np.float32]] = {}
            for place, vector in zip(new, made, strict=True):
                wanted = batch[place]
                if not np.isfinite(vector).all():
                    results[place] = Failure(
                        wanted.path, Reason.NOT_FINITE, f"{wanted.path}: the model gives NaN for it"
                    )
                    continue
                results[place] = vector
                if wanted.key is not None:
                    store[wanted.key] = vector
            if cache is not None:
                cache.put(store)
        yield from results


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An image with its vector from the cache, or with its pixels to come."""

    path: Path
    key: bytes | None
    vector: NDArray[np.float32] | None
    pixels: Future[NDArray[np.uint8] | Failure] | None


def _key(path: Path) -> bytes | None:
    try:
        return image_key(path, _MADE_BY)
    except (OSError, RuntimeError, ValueError):  # reading it will say what is wrong
        return None

"""The model as the server uses it: asynchronous, batched over requests, and bounded."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.cpus import available_cpus
from mcip_qdrant.decode import DecodeLimits, decode
from mcip_qdrant.errors import ImageError, Reason
from mcip_qdrant.mix import checked_weights, weighted_sum
from mcip_qdrant.preprocess import preprocess
from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.server.batching import Batcher
from mcip_qdrant.server.metrics import Metrics
from mcip_qdrant.server.settings import Limits
from mcip_qdrant.server.text_limits import refuse_bombs
from mcip_qdrant.server.turns import Turns
from mcip_qdrant.tokenizer import Tokens

_TEXTS_AT_ONCE, _IMAGES_AT_ONCE = 64, 16
_TOKENIZERS, _DECODERS = 2, 4
_TURN_CHARS = 8192


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it came in: a `data:…;base64,…` URL, not decoded yet."""

    url: str


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Vectors of texts, float32 `[N, D]`, unit norm; the tokens that the model read of all of them; whose end was left out."""

    vectors: NDArray[np.float32]
    tokens: int
    truncated: Sequence[bool]


class Embedder:
    """Texts and pictures of all requests -> vectors of one bundle. Belongs to one event loop, that of `running`."""

    def __init__(self, encoder: QueryEncoder, *, row_by_row: bool, limits: Limits, metrics: Metrics) -> None:
        """Wrap an encoder.

        Args:
            row_by_row: never put two rows into one model call. For int8 graphs, whose dynamic quantisation lets the other rows
                of a batch move a vector: a stranger's request must not.
        """
        self.encoder = encoder
        self.tokenizer = encoder.bundle.tokenizer()
        self._limits = limits
        self._decode_limits = DecodeLimits(max_bytes=limits.max_body_bytes, max_pixels=limits.max_pixels)
        waiting_pictures = limits.waiting_rows // 8
        self._tokens: Turns[str, Tokens] = Turns(
            self._tokenized,
            cost=lambda text: 1 / _TEXTS_AT_ONCE + len(text) / _TURN_CHARS,
            threads=_TOKENIZERS,
            waiting_limit=limits.waiting_rows,
            patience_s=limits.patience_s,
        )
        self._pixels: Turns[tuple[str, Picture], NDArray[np.uint8]] = Turns(
            self._decoded,
            cost=lambda _picture: 1.0,
            threads=min(_DECODERS, available_cpus()),
            waiting_limit=waiting_pictures,
            patience_s=limits.patience_s,
        )
        self._texts: Batcher[NDArray[np.int64]] = Batcher(
            lambda rows: encoder.encode_ids(np.stack(rows)),
            largest=1 if row_by_row else _TEXTS_AT_ONCE,
            waiting_limit=limits.waiting_rows,
            patience_s=limits.patience_s,
            on_batch=lambda rows, seconds: metrics.batch("text", rows, seconds),
        )
        self._images: Batcher[NDArray[np.uint8]] = Batcher(
            encoder.images,
            largest=1 if row_by_row else _IMAGES_AT_ONCE,
            waiting_limit=waiting_pictures,
            patience_s=limits.patience_s,
            on_batch=lambda rows, seconds: metrics.batch("image", rows, seconds),
        )
        metrics.watch_queue("text", lambda: self._tokens.waiting + self._texts.waiting)
        metrics.watch_queue("image", lambda: self._pixels.waiting + self._images.waiting)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests inside this block."""
        workers = [asyncio.create_task(batcher.run()) for batcher in (self._texts, self._images)]
        try:
            yield
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._tokens.close()
            self._pixels.close()

    def stuck_for(self) -> float:
        """Seconds that the longest running model call has taken so far."""
        return max(self._texts.stuck_for(), self._images.stuck_for())

    async def texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode them.

        Raises:
            InvalidQueryError: a text that the model has no ids for, or one that is made to take long.
            OverloadedError: too much is waiting.
        """
        tokens = await self._tokens.prepare(texts)
        pad = self.encoder.bundle.manifest.tokenizer.pad_id
        return EncodedTexts(
            vectors=await self._texts.encode([one.ids[0] for one in tokens]),
            tokens=sum(int((one.ids != pad).sum()) for one in tokens),
            truncated=[bool(one.truncated[0]) for one in tokens],
        )

    async def images(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Float32 `[N, D]`, unit norm.

        Raises:
            ImageError: one of them is no picture; the message says which.
            OverloadedError: too much is waiting.
        """
        several = len(pictures) > 1
        named = [(f"picture {number}: " if several else "", picture) for number, picture in enumerate(pictures)]
        return await self._images.encode(await self._pixels.prepare(named))

    async def mix(self, parts: Sequence[tuple[str | Picture, float]]) -> NDArray[np.float32]:
        """One vector float32 `[D]` of weighted words and pictures, as `QueryEncoder.mix` defines it.

        Raises:
            InvalidQueryError: weights that are all zero, or parts that cancel each other out.
            ImageError: one of the pictures is none.
            OverloadedError: too much is waiting.
        """
        weights = checked_weights([weight for _, weight in parts])
        vectors = await asyncio.gather(*(self._one(part) for part, _ in parts))
        return weighted_sum(np.stack(vectors), weights)

    async def _one(self, part: str | Picture) -> NDArray[np.float32]:
        rows = await self.images([part]) if isinstance(part, Picture) else (await self.texts([part])).vectors
        vector: NDArray[np.float32] = rows[0]
        return vector

    def _tokenized(self, text: str) -> Tokens:
        refuse_bombs(text, self._limits)
        return self.tokenizer.encode([text])

    def _decoded(self, named: tuple[str, Picture]) -> NDArray[np.uint8]:
        name, picture = named
        try:
            rgb = decode(data_url_bytes(picture.url), limits=self._decode_limits).rgb
        except ImageError as exc:
            raise ImageError(exc.reason, f"{name}{exc}") from exc
        return preprocess(rgb, self.encoder.bundle.manifest.preprocess)


def data_url_bytes(url: str) -> bytes:
    """What a `data:…;base64,…` URL carries; line breaks within are skipped.

    Raises:
        ImageError: it is not base64.
    """
    encoded = url.partition(",")[2]
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ImageError(Reason.NOT_AN_IMAGE, f"the data URL does not hold base64: {exc}") from exc

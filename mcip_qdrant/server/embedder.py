"""The model as the server uses it: asynchronous, batched over requests, and bounded."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from mcip_qdrant.server.batching import Batcher, OverloadedError
from mcip_qdrant.server.metrics import Metrics
from mcip_qdrant.server.settings import Limits

_TEXTS_AT_ONCE, _IMAGES_AT_ONCE = 64, 16
_DECODERS = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it came in: a `data:…;base64,…` URL, not decoded yet."""

    url: str


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
        self._decoders = ThreadPoolExecutor(min(_DECODERS, available_cpus()), thread_name_prefix="decode")
        self._decoding = 0
        self._texts: Batcher[str] = Batcher(
            encoder.texts,
            largest=1 if row_by_row else _TEXTS_AT_ONCE,
            waiting_limit=limits.waiting_rows,
            patience_s=limits.patience_s,
            on_batch=lambda rows, seconds: metrics.batch("text", rows, seconds),
        )
        self._images: Batcher[NDArray[np.uint8]] = Batcher(
            encoder.images,
            largest=1 if row_by_row else _IMAGES_AT_ONCE,
            waiting_limit=limits.waiting_rows // 8,
            patience_s=limits.patience_s,
            on_batch=lambda rows, seconds: metrics.batch("image", rows, seconds),
        )
        metrics.watch_queue("text", lambda: self._texts.waiting)
        metrics.watch_queue("image", lambda: self._images.waiting + self._decoding)

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
            self._decoders.shutdown(wait=False, cancel_futures=True)

    def stuck_for(self) -> float:
        """Seconds that the longest running model call has taken so far."""
        return max(self._texts.stuck_for(), self._images.stuck_for())

    async def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Float32 `[N, D]`, unit norm.

        Raises:
            InvalidQueryError: an empty text.
            OverloadedError: too much is waiting.
        """
        return await self._texts.encode(texts)

    async def images(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Float32 `[N, D]`, unit norm.

        Raises:
            ImageError: one of them is no picture; the message says which.
            OverloadedError: too much is waiting.
        """
        if self._decoding + len(pictures) > self._limits.waiting_rows // 8:
            raise OverloadedError("too many pictures are waiting to be decoded")
        loop = asyncio.get_running_loop()
        self._decoding += len(pictures)
        try:
            ready = [loop.run_in_executor(self._decoders, self._pixels, picture) for picture in pictures]
            found = await asyncio.gather(*ready, return_exceptions=True)
        finally:
            self._decoding -= len(pictures)
        pixels = []
        for number, outcome in enumerate(found):
            if isinstance(outcome, ImageError):
                which = f"picture {number}: " if len(pictures) > 1 else ""
                raise ImageError(outcome.reason, f"{which}{outcome}") from outcome
            if isinstance(outcome, BaseException):
                raise outcome
            pixels.append(outcome)
        return await self._images.encode(pixels)

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
        rows = await (self.images([part]) if isinstance(part, Picture) else self.texts([part]))
        vector: NDArray[np.float32] = rows[0]
        return vector

    def count_tokens(self, texts: Sequence[str]) -> tuple[int, list[bool]]:
        """How many tokens the model reads of these texts together, and for each text whether its end is left out."""
        if not texts:
            return 0, []
        tokens = self.tokenizer.encode(texts)
        read = tokens.ids != self.encoder.bundle.manifest.tokenizer.pad_id
        return int(read.sum()), tokens.truncated.tolist()

    def _pixels(self, picture: Picture) -> NDArray[np.uint8]:
        data = data_url_bytes(picture.url)
        return preprocess(decode(data, limits=self._decode_limits).rgb, self.encoder.bundle.manifest.preprocess)


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

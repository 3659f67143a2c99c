"""`/v1/thumbnails/{id}`: small pictures of the collection's own images, made on demand from files below `--source-root`."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi import Path as InPath

from mcip_qdrant.cpus import available_cpus
from mcip_qdrant.decode import DecodeLimits
from mcip_qdrant.errors import ImageError
from mcip_qdrant.hit import Hit
from mcip_qdrant.read import FileState
from mcip_qdrant.server.archive import Archive
from mcip_qdrant.server.batching import OverloadedError
from mcip_qdrant.server.problems import NoCollectionError, responses
from mcip_qdrant.server.settings import Limits
from mcip_qdrant.thumbnail import picture_bytes, picture_state, thumbnail

SIDE = 320
"""Longest side of a thumbnail in pixels."""

_KEPT_BYTES = 64 << 20
_WAITING = 256


@dataclass(frozen=True, slots=True)
class _Kept:
    jpeg: bytes
    key: str
    state: FileState | None


class Thumbnails:
    """Makes and keeps thumbnails. Kept in memory only, by the content they show, for as long as the file is as it was then."""

    def __init__(self, roots: Mapping[str, Path], limits: Limits) -> None:
        """Prepare.

        Args:
            roots: folder of each source, by encoded source name.
        """
        self.available = bool(roots)
        self._roots = roots
        self._limits = DecodeLimits(max_pixels=limits.max_pixels)
        self._turns = asyncio.Semaphore(available_cpus())
        self._waiting = 0
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._kept_bytes = 0

    def version(self, payload: Mapping[str, Any]) -> str | None:
        """What the thumbnail of an image is called in its address, which changes with the image; None where there is none."""
        digest, source = payload.get("sha256"), payload.get("source")
        known = isinstance(source, str) and source in self._roots and isinstance(payload.get("key"), str)
        return digest[:16] if known and isinstance(digest, str) else None

    async def of(self, payload: Mapping[str, Any]) -> bytes:
        """JPEG bytes.

        Raises:
            NoCollectionError: no folder is known for the image's source, or its file is not the one that was ingested.
            OverloadedError: too many are waiting.
        """
        if self.version(payload) is None:
            raise NoCollectionError("the folder of this image is not known here (--source-root)")
        digest = str(payload["sha256"])
        hit = Hit(id="", score=0.0, uri="", payload=dict(payload))
        if self._waiting >= _WAITING:
            raise OverloadedError("too many thumbnails are waiting to be made")
        self._waiting += 1
        try:
            async with self._turns:
                made = await asyncio.to_thread(self._kept_or_made, hit, digest, self._kept.get(digest))
        finally:
            self._waiting -= 1
        self._keep(digest, made)
        return made.jpeg

    def _keep(self, digest: str, made: _Kept) -> None:
        before = self._kept.pop(digest, None)
        self._kept_bytes += len(made.jpeg) - (0 if before is None else len(before.jpeg))
        self._kept[digest] = made
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1].jpeg)

    def _kept_or_made(self, hit: Hit, digest: str, kept: _Kept | None) -> _Kept:
        try:
            # Before reading: a file that is exchanged in between then differs from this the next time.
            state = picture_state(hit, self._roots)
        except ImageError as exc:
            raise _not_shown(exc) from exc
        if kept is not None and state is not None and (kept.key, kept.state) == (hit.key, state):
            return kept
        return _Kept(self._make(hit, digest), hit.key, state)

    def _make(self, hit: Hit, digest: str) -> bytes:
        try:
            data = picture_bytes(hit, self._roots, max_bytes=self._limits.max_bytes)
            if hashlib.sha256(data).hexdigest() != digest:
                raise NoCollectionError("the file has changed since it was ingested; ingest it again")
            return thumbnail(data, side=SIDE, limits=self._limits).jpeg
        except ImageError as exc:
            raise _not_shown(exc) from exc


def _not_shown(reason: ImageError) -> NoCollectionError:
    return NoCollectionError(f"this image cannot be shown: {reason}")


def thumbnails_router(archive: Archive | None, thumbnails: Thumbnails) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/v1", tags=["search"])

    @router.get(
        "/thumbnails/{point}",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}, "description": "The thumbnail"}, **responses(404, 409, 502)},
    )
    async def thumbnail_of(
        point: Annotated[uuid.UUID, InPath(description="The image's point id")],
        v: Annotated[str, Query(max_length=64, description="Only keeps caches apart")] = "",
    ) -> Response:
        """A small picture of one image of the collection, made from its file below --source-root."""
        if archive is None:
            raise NoCollectionError("this server has no collection")
        payload = await archive.payload(str(point))
        made = await thumbnails.of(payload)
        # Private: only the browser that asked may keep it. An address with the right version always shows the same picture.
        same = v != "" and v == thumbnails.version(payload)
        caching = "private, max-age=3600, immutable" if same else "private, no-cache"
        return Response(made, media_type="image/jpeg", headers={"Cache-Control": caching})

    return router

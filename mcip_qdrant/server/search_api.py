"""`/v1/search`, `/v1/facets` and `/v1/collection`: the collection for programs in any language, and for the page."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Body
from fastapi.openapi.models import Example
from numpy.typing import NDArray

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.hit import Hit
from mcip_qdrant.request import Like
from mcip_qdrant.server.archive import Archive, parse_filter
from mcip_qdrant.server.embedder import Embedder, Picture
from mcip_qdrant.server.embedding_schemas import Model
from mcip_qdrant.server.problems import NoCollectionError, responses
from mcip_qdrant.server.schema_fields import LIMITS, PICTURE_EXAMPLE
from mcip_qdrant.server.search_schemas import (
    CollectionAnswer,
    Facet,
    FacetAnswer,
    FacetRequest,
    FacetValue,
    LikeExamples,
    MixPart,
    SearchAnswer,
    SearchHit,
    SearchRequest,
)
from mcip_qdrant.server.thumbnails import Thumbnails

_EXAMPLES: dict[str, Example] = {
    "words": {"value": {"text": "a red car in the snow", "limit": 5}},
    "a picture": {"value": {"image": PICTURE_EXAMPLE, "limit": 5}},
    "more like an image of the collection": {"value": {"like": "photos/2019/IMG_0001.jpg"}},
    "words, a picture, and what to avoid": {
        "value": {
            "mix": [
                {"text": "a beach at night"},
                {"image": PICTURE_EXAMPLE, "weight": 0.7},
                {"text": "people", "weight": -0.4},
            ]
        }
    },
    "words, within one source": {
        "value": {"text": "a cat", "filter": {"must": [{"key": "source", "match": {"value": "photos"}}]}}
    },
}


def search_router(embedder: Embedder, archive: Archive | None, thumbnails: Thumbnails, model: Model) -> APIRouter:
    """Routes that need a collection; without one they answer 404."""
    router = APIRouter(prefix="/v1", tags=["search"])

    @router.post("/search", responses=responses(404, 409, 502))
    async def search(request: Annotated[SearchRequest, Body(openapi_examples=_EXAMPLES)]) -> SearchAnswer:
        """Images of the collection nearest to words, a picture, other images, a mix, or a vector of your own."""
        collection = _there(archive)
        query = await _query(request, embedder, model)
        hits = await collection.search(
            **query,
            # One more than asked for tells whether there is a next page.
            limit=request.limit + 1,
            offset=request.offset,
            filter=parse_filter(request.filter),
            score_threshold=request.score_threshold,
            diverse=request.diverse,
            collapse_duplicates=request.collapse_duplicates,
            with_vectors=request.with_vectors,
        )
        next_offset = request.offset + request.limit
        more = len(hits) > request.limit and not request.diverse and next_offset <= LIMITS.max_offset
        return SearchAnswer(
            collection=collection.name,
            model=model.id,
            space_id=model.space_id,
            hits=[_hit(hit, thumbnails) for hit in hits[: request.limit]],
            next_offset=next_offset if more else None,
        )

    @router.post("/facets", responses=responses(404, 409, 502))
    async def facets(request: FacetRequest) -> FacetAnswer:
        """The most frequent values of payload fields, for filtering."""
        found = await _there(archive).facets(request.fields, parse_filter(request.filter), request.limit)
        return FacetAnswer(
            facets=[
                Facet(field=field, values=[FacetValue(value=value.value, count=value.count) for value in values])
                for field, values in found.items()
            ]
        )

    @router.get("/collection", responses=responses(404, 409, 502))
    async def collection() -> CollectionAnswer:
        """What is searched here."""
        found = _there(archive)
        return CollectionAnswer(
            name=found.name,
            images=await found.count(),
            model=model.id,
            space_id=model.space_id,
            thumbnails=thumbnails.available,
        )

    return router


def _there(archive: Archive | None) -> Archive:
    if archive is None:
        raise NoCollectionError("this server has no collection: it answers /v1/embeddings only")
    return archive


async def _query(request: SearchRequest, embedder: Embedder, model: Model) -> dict[str, Any]:
    given = [name for name in ("text", "image", "like", "mix", "vector") if getattr(request, name) is not None]
    if len(given) != 1:
        raise InvalidQueryError("give exactly one of text, image, like, mix and vector")
    if request.like is not None:
        return {"like": _like(request.like)}
    if request.vector is not None:
        if len(request.vector) != model.embedding_dim:
            raise InvalidQueryError(f"vector must be {model.embedding_dim} numbers, not {len(request.vector)}")
        return {"vector": request.vector}
    return {"vector": await _encoded(request, embedder)}


def _like(given: str | list[str] | LikeExamples) -> str | list[str] | Like:
    return Like(positive=given.positive, negative=given.negative) if isinstance(given, LikeExamples) else given


async def _encoded(request: SearchRequest, embedder: Embedder) -> NDArray[np.float32]:
    if request.mix is not None:
        return await embedder.mix([(_part(part), part.weight) for part in request.mix])
    what: str | Picture = request.text if request.text is not None else Picture(request.image or "")
    return await embedder.mix([(what, 1.0)])


def _part(part: MixPart) -> str | Picture:
    if (part.text is None) == (part.image is None):
        raise InvalidQueryError("each part of a mix is either text or image")
    return part.text if part.text is not None else Picture(part.image or "")


def _hit(hit: Hit, thumbnails: Thumbnails) -> SearchHit:
    version = thumbnails.version(hit.payload)
    return SearchHit(
        id=hit.id,
        score=hit.score,
        key=hit.key,
        uri=hit.uri,
        payload=hit.payload,
        thumbnail=None if version is None else f"/v1/thumbnails/{quote(hit.id)}?v={version}",
        vector=None if hit.vector is None else hit.vector.tolist(),
    )

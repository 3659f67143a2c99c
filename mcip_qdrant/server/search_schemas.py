"""What clients send to and get from `/v1/search`, `/v1/facets` and `/v1/collection`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    FiniteFloat,
)

from mcip_qdrant.server.schema_fields import LIMITS, Name, PictureUrl, Request, Words


class LikeExamples(Request):
    """Images of the collection, by key or point id."""

    positive: list[Name] = Field(default=[], max_length=32)
    negative: list[Name] = Field(default=[], max_length=32)


class MixPart(Request):
    """Words or a picture, and how much they count; a negative weight turns away from them."""

    text: Words | None = None
    image: PictureUrl | None = None
    weight: FiniteFloat = 1.0


def _finite(vector: list[float]) -> list[float]:
    if not all(math.isfinite(number) for number in vector):
        raise ValueError("a vector must hold finite numbers only")
    return vector


class SearchRequest(Request):
    """Exactly one of `text`, `image`, `like`, `mix` and `vector`; the rest narrows or widens the answer."""

    text: Words | None = Field(None, description="Words that describe the picture", examples=["a cat on a sofa"])
    image: PictureUrl | None = None
    like: Name | Annotated[list[Name], Field(min_length=1, max_length=32)] | LikeExamples | None = Field(
        None, description="Key or point id of an image of the collection, several, or positive and negative ones"
    )
    mix: Annotated[list[MixPart], Field(min_length=1, max_length=16)] | None = None
    vector: Annotated[list[float], AfterValidator(_finite), Field(max_length=65536)] | None = None
    limit: int = Field(12, ge=1, le=LIMITS.max_hits)
    offset: int = Field(0, ge=0, le=LIMITS.max_offset)
    filter: dict[str, Any] | None = Field(
        None,
        description="Qdrant's own filter",
        examples=[{"must": [{"key": "source", "match": {"value": "photos"}}]}],
    )
    score_threshold: FiniteFloat | None = None
    diverse: bool | Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = False
    collapse_duplicates: bool = True
    with_vectors: bool = False


class SearchHit(BaseModel):
    """One image. `thumbnail` is a path on this server, or null where the image's folder is not known here."""

    id: str
    score: float
    key: str
    uri: str
    payload: dict[str, Any]
    thumbnail: str | None
    vector: list[float] | None = None


class SearchAnswer(BaseModel):
    """Hits, best first; `next_offset` is null where there are no more, or none that may be asked for."""

    object: Literal["list"] = "list"
    collection: str
    model: str
    space_id: str
    hits: list[SearchHit]
    next_offset: int | None


class FacetRequest(Request):
    """Fields to count; without them, those that are worth filtering by."""

    fields: Annotated[list[Name], Field(max_length=16)] | None = None
    filter: dict[str, Any] | None = None
    limit: int = Field(20, ge=1, le=100)


class FacetValue(BaseModel):
    """A value and how many images have it."""

    value: str | int | bool
    count: int


class Facet(BaseModel):
    """The most frequent values of one field."""

    field: str
    values: list[FacetValue]


class FacetAnswer(BaseModel):
    """Counts within the filter."""

    facets: list[Facet]


class CollectionAnswer(BaseModel):
    """The collection that is searched."""

    name: str
    images: int
    model: str
    space_id: str
    thumbnails: bool

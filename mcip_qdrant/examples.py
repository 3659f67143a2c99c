"""Examples by key or point id -> Qdrant's recommendation query."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.keys import point_id
from mcip_qdrant.request import Like

if TYPE_CHECKING:
    from qdrant_client import models

_DIGITS = 20  # of the largest id; Python refuses to read numbers of thousands of digits


@dataclass(frozen=True, slots=True)
class Found:
    """An example that the collection has: its point id, and the digest of its file where the payload tells."""

    id: str | int
    sha256: str | None


def candidates(like: Like) -> list[str | int]:
    """Every point id that the examples may mean."""
    return [one for example in (*like.positive, *like.negative) for one in _ids(example)]


def found(records: Iterable[models.Record]) -> dict[str | int, Found]:
    """What Qdrant knows of the candidates, by point id."""
    return {
        record.id: Found(record.id, (record.payload or {}).get("sha256"))
        for record in records
        if isinstance(record.id, (str, int))
    }


def resolve(examples: Sequence[str], known: Mapping[str | int, Found], collection: str) -> list[Found]:
    """The points that examples mean; an id wins over a key of the same spelling.

    Raises:
        InvalidQueryError: the collection has no such image.
    """
    resolved = []
    for example in examples:
        match = next((known[one] for one in _ids(example) if one in known), None)
        if match is None:
            raise InvalidQueryError(f"collection {collection!r} has no image with key or id {example!r}")
        resolved.append(match)
    return resolved


def recommend(like: Like, positive: Sequence[Found], negative: Sequence[Found]) -> models.RecommendQuery:
    """Qdrant's query for images near to some points and far from others; the points themselves are left out of its answer."""
    from qdrant_client import models

    return models.RecommendQuery(
        recommend=models.RecommendInput(
            positive=[one.id for one in positive],
            negative=[one.id for one in negative],
            strategy=models.RecommendStrategy(like.strategy),
        )
    )


def _ids(example: str) -> list[str | int]:
    ids: list[str | int] = [point_id(example)]
    try:
        ids.insert(0, str(uuid.UUID(example)))
    except ValueError:
        # Collections of other software may number their points.
        if example.isascii() and example.isdecimal() and len(example) <= _DIGITS and int(example) < 2**64:
            ids.insert(0, int(example))
    return ids

"""From Qdrant's points to hits: how many to ask for, and copies of one file left out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.hit import Hit
from mcip_qdrant.request import Query

if TYPE_CHECKING:
    from qdrant_client import models

# An archive with some copies costs no second request; one image copied a thousand times costs a few.
_SPARE, _GROWTH, _MOST = 10, 4, 20_000


@dataclass(slots=True)
class Answer:
    """One query on its way to its hits.

    With `collapse`, points with equal `sha256` are one image, the best of them; `examples` are the digests of images that must not
    come back. Then offset and limit count images, not points: pages follow each other without repeating or leaving out any, and
    each is made by asking for everything before it too (which is what Qdrant's own offset does).
    """

    query: Query
    target: models.NearestQuery | models.RecommendQuery
    collapse: bool
    examples: Collection[str] = ()
    fetch: int = 0
    _points: list[models.ScoredPoint] = field(default_factory=list)

    @classmethod
    def expected(cls, query: Query, *, collapse: bool) -> int:
        """How many points to ask for at first."""
        limit = query.limit or 0
        return query.offset + limit + _SPARE if collapse else limit

    def request(self) -> models.QueryRequest:
        """The request for Qdrant.

        Raises:
            InvalidQueryError: a filter or search_params that is none of Qdrant's.
        """
        from pydantic import ValidationError
        from qdrant_client import models

        query = self.query
        try:
            return models.QueryRequest(
                query=self.target,
                limit=self.fetch,
                offset=0 if self.collapse else query.offset,
                filter=query.filter,
                params=query.search_params,
                score_threshold=query.score_threshold,
                with_payload=True,
                with_vector=query.with_vectors,
            )
        except ValidationError as exc:
            problem = exc.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in problem["loc"][:1])
            raise InvalidQueryError(
                f"{where} is not what Qdrant takes (qdrant_client.models): {problem['msg']}"
            ) from exc

    def complete(self, points: list[models.ScoredPoint]) -> bool:
        """Take what Qdrant gave; False where more points must be fetched to have enough images."""
        self._points = distinct(points, self.examples) if self.collapse else points
        wanted = self.query.offset + (self.query.limit or 0)
        enough = not self.collapse or self.query.is_diverse or len(self._points) >= wanted
        if enough or len(points) < self.fetch or self.fetch >= _MOST:
            return True
        self.fetch = min(self.fetch * _GROWTH, _MOST)
        return False

    def hits(self) -> list[Hit]:
        """What was asked for."""
        start = self.query.offset if self.collapse else 0
        return [hit_of(point) for point in self._points[start : start + (self.query.limit or 0)]]


def distinct(points: Iterable[models.ScoredPoint], seen: Collection[str] = ()) -> list[models.ScoredPoint]:
    """The first point of each `sha256` that is not in `seen`; points without one are all kept."""
    known, kept = set(seen), []
    for point in points:
        digest = (point.payload or {}).get("sha256")
        if not isinstance(digest, str):
            kept.append(point)
        elif digest not in known:
            known.add(digest)
            kept.append(point)
    return kept


def group_hits(groups: Sequence[models.PointGroup], size: int, seen: Collection[str], *, collapse: bool) -> list[Hit]:
    """The hits of each group in turn, at most `size` of each."""
    return [
        hit_of(point, group=group.id)
        for group in groups
        for point in (distinct(group.hits, seen) if collapse else group.hits)[:size]
    ]


def hit_of(point: models.ScoredPoint, *, group: str | int | None = None) -> Hit:
    """A point as users see it."""
    payload = point.payload or {}
    vector = None if point.vector is None else np.asarray(point.vector, dtype=np.float32)
    return Hit(str(point.id), point.score, str(payload.get("uri", "")), payload, vector, group)

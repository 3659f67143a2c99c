"""From Qdrant's points to hits: how many to ask for, and copies of one file left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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

    A diverse answer is chosen by Qdrant from a limited number of candidates, which copies would fill: it is asked for again without
    them.
    """

    query: Query
    target: models.NearestQuery | models.RecommendQuery
    collapse: bool
    examples: Collection[str] = ()
    fetch: int = 0
    _points: list[models.ScoredPoint] = field(default_factory=list)
    _kept: dict[str, models.ExtendedPointId] = field(default_factory=dict)

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
            request = models.QueryRequest(
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
        if self.collapse and query.is_diverse:
            return request.model_copy(update={"filter": without_copies(request.filter, self.examples, self._kept)})
        return request

    def complete(self, points: list[models.ScoredPoint]) -> bool:
        """Take what Qdrant gave; False where more points must be fetched to have enough images."""
        self._points = distinct(points, self.examples) if self.collapse else points
        wanted = self.query.offset + (self.query.limit or 0)
        if not self.collapse or len(self._points) >= wanted or len(points) < self.fetch or self.fetch >= _MOST:
            return True
        if self.query.is_diverse:
            return not self._leave_out_copies(points)
        self.fetch = min(self.fetch * _GROWTH, _MOST)
        return False

    def hits(self) -> list[Hit]:
        """What was asked for."""
        start = self.query.offset if self.collapse else 0
        return [hit_of(point) for point in self._points[start : start + (self.query.limit or 0)]]

    def _leave_out_copies(self, points: list[models.ScoredPoint]) -> bool:
        """Ask for one point of each digest that came with copies; False where that changes nothing."""
        copies = Counter(digest for point in points if (digest := digest_of(point)) is not None)
        known = len(self._kept)
        self._kept |= {
            digest: point.id
            for point in self._points
            if (digest := digest_of(point)) is not None and copies[digest] > 1
        }
        self.fetch = len(self._points) + self.expected(self.query, collapse=True)
        self.target = self.target.model_copy(update={"mmr": self.query.mmr(fetch=self.fetch)})
        return len(self._kept) > known


@dataclass(slots=True)
class GroupedAnswer:
    """A query whose hits come in groups, at most `size` of each; copies count once within each group."""

    answer: Answer
    field: str
    size: int
    _fetch: int = 0
    _groups: Sequence[models.PointGroup] = ()

    def __post_init__(self) -> None:
        self._fetch = 2 * self.size if self.answer.collapse else self.size

    def request(self) -> dict[str, Any]:
        """Arguments for `QdrantClient.query_points_groups`.

        Raises:
            InvalidQueryError: as `Answer.request`.
        """
        request, answer = self.answer.request(), self.answer
        return {
            "group_by": self.field,
            "query": request.query,
            # Here, because a group that holds nothing else would take the place of another one.
            "query_filter": without_copies(request.filter, answer.examples) if answer.collapse else request.filter,
            "search_params": request.params,
            "limit": answer.query.limit,
            "group_size": self._fetch,
            "with_payload": True,
            "with_vectors": answer.query.with_vectors,
            "score_threshold": request.score_threshold,
        }

    def complete(self, groups: Sequence[models.PointGroup]) -> bool:
        """Take what Qdrant gave; False where copies left a group short of images that it may have."""
        self._groups = groups
        most = _MOST // (self.answer.query.limit or 1)
        short = any(len(group.hits) >= self._fetch and len(distinct(group.hits)) < self.size for group in groups)
        if not self.answer.collapse or not short or self._fetch >= most:
            return True
        self._fetch = min(self._fetch * _GROWTH, most)
        return False

    def hits(self) -> list[Hit]:
        """The hits of each group in turn."""
        return group_hits(self._groups, self.size, self.answer.examples, collapse=self.answer.collapse)


def without_copies(
    given: models.Filter | None, unwanted: Collection[str], kept: Mapping[str, models.ExtendedPointId] | None = None
) -> models.Filter | None:
    """A filter that also leaves out images by `sha256`: all that are `unwanted`, and of each one in `kept` all points but that one."""
    from qdrant_client import models

    def equal_to(digests: Iterable[str]) -> models.FieldCondition:
        return models.FieldCondition(key="sha256", match=models.MatchAny(any=sorted(digests)))

    left_out: list[models.Condition] = [equal_to(unwanted)] if unwanted else []
    if kept:
        left_out.append(models.Filter(must=[equal_to(kept)], must_not=[models.HasIdCondition(has_id=[*kept.values()])]))
    if not left_out:
        return given
    return models.Filter(must=None if given is None else [given], must_not=left_out)


def digest_of(point: models.ScoredPoint) -> str | None:
    """The `sha256` of a point's file, where its payload tells."""
    digest = (point.payload or {}).get("sha256")
    return digest if isinstance(digest, str) else None


def distinct(points: Iterable[models.ScoredPoint], seen: Collection[str] = ()) -> list[models.ScoredPoint]:
    """The first point of each `sha256` that is not in `seen`; points without one are all kept."""
    known, kept = set(seen), []
    for point in points:
        digest = digest_of(point)
        if digest is None:
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
    return Hit(str(point.id), point.score, str(payload.get("uri") or ""), payload, vector, group)

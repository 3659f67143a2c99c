"""`POST /points/query`: by vector, by point, by examples, or by nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import qdrant_edge as edge
from qdrant_client import models

from qdrant_server.collection import Collection
from qdrant_server.config import Json
from qdrant_server.errors import ApiError, not_found, unsupported, wrong_input
from qdrant_server.filters import PointId, engine_id, optional_filter
from qdrant_server.points import dense, payload_choice, record

_MOST_CANDIDATES = 16_384


def query_request(collection: Collection, shard: edge.EdgeShard, body: models.QueryRequest) -> edge.QueryRequest:
    """One query for the engine, its point ids looked up."""
    for option in ("prefetch", "lookup_from", "shard_key"):
        if getattr(body, option) is not None:
            raise unsupported(f"query option {option}")
    lookup = _Lookup(collection, shard, body.using or "")
    limit, offset = limit_of(body.limit, default=10), body.offset or 0
    return edge.QueryRequest(
        query=_query(lookup, body.query, limit + offset),
        filter=lookup.without_seen(optional_filter(body.filter)),
        limit=limit,
        offset=offset,
        score_threshold=body.score_threshold,
        params=_params(body.params),
        with_payload=payload_choice(body.with_payload, default=False),
        with_vector=body.with_vector or False,
    )


def grouped(found: Sequence[Any], body: models.QueryGroupsRequest) -> list[Json]:
    """The best points of the best groups, from all points in order."""
    size, limit = limit_of(body.group_size, default=3), limit_of(body.limit, default=10)
    groups: dict[Any, list[Any]] = {}
    for point in found:
        value = (point.payload or {}).get(body.group_by)
        for one in dict.fromkeys(value if isinstance(value, list) else [value]):
            if isinstance(one, (str, int)) and not isinstance(one, bool):
                groups.setdefault(one, []).append(point)
    return [{"id": value, "hits": [record(one) for one in points[:size]]} for value, points in groups.items()][:limit]


def limit_of(given: int | None, *, default: int) -> int:
    """How many results."""
    if given is not None and given < 1:
        raise ApiError(422, f"Validation error in JSON body: [limit: value {given} invalid, must be 1 or larger]")
    return default if given is None else given


class _Lookup:
    """Turns vectors and point ids into vectors. Points used as examples are left out of the results, as Qdrant does."""

    def __init__(self, collection: Collection, shard: edge.EdgeShard, using: str) -> None:
        self.using = using
        self._collection = collection
        self._shard = shard
        self._seen: set[PointId] = set()

    def vector(self, given: Any) -> list[float]:
        if not isinstance(given, int | str | UUID):
            return dense(self._collection, self.using, given)
        point = engine_id(given)
        found = self._shard.retrieve([point], False, [self.using] if self.using else True)
        if not found:
            raise not_found(f"No point with id {given} found")
        self._seen.add(point)
        vector: Any = found[0].vector
        if self.using:
            vector = (vector or {}).get(self.using)
        if not vector:
            raise not_found(f'Vector with name "{self.using}" for point not found')
        return list(vector)

    def vectors(self, given: Sequence[Any] | None) -> list[Any]:
        return [self.vector(one) for one in given or ()]

    def without_seen(self, wanted: edge.Filter | None) -> edge.Filter | None:
        if not self._seen:
            return wanted
        return edge.Filter(must=[wanted] if wanted else None, must_not=[edge.HasIdCondition(self._seen)])


def _query(lookup: _Lookup, given: Any, limit: int) -> Any:
    match given:
        case None:
            return None
        case models.RecommendQuery(recommend=examples):
            return _recommend(lookup, examples)
        case models.NearestQuery(nearest=given, mmr=None):
            return edge.Query.Nearest(lookup.vector(given), lookup.using)
        case models.NearestQuery(nearest=given, mmr=mmr):
            return _diverse(lookup.vector(given), mmr, lookup.using, limit)
        case models.SampleQuery(sample=models.Sample.RANDOM):
            return edge.Sample.Random
        case list() | int() | str() | UUID():
            return edge.Query.Nearest(lookup.vector(given), lookup.using)
    raise unsupported(f"query {type(given).__name__}")


def _diverse(target: list[float], mmr: models.Mmr, using: str, limit: int) -> Any:
    diversity = 0.5 if mmr.diversity is None else mmr.diversity
    candidates = limit if mmr.candidates_limit is None else mmr.candidates_limit
    if not 0 <= diversity <= 1 or not 1 <= candidates <= _MOST_CANDIDATES:
        raise ApiError(422, "Validation error in JSON body: [query.mmr: value invalid]")
    return edge.Mmr(target, 1.0 - diversity, candidates, using or None)


def _recommend(lookup: _Lookup, examples: models.RecommendInput) -> Any:
    positive, negative = lookup.vectors(examples.positive), lookup.vectors(examples.negative)
    match examples.strategy:
        case models.RecommendStrategy.BEST_SCORE:
            return edge.Query.RecommendBestScore(edge.RecommendQuery(positive, negative), lookup.using)
        case models.RecommendStrategy.SUM_SCORES:
            return edge.Query.RecommendSumScores(edge.RecommendQuery(positive, negative), lookup.using)
    if not positive:
        raise wrong_input("Positive vectors should not be empty with `average` strategy")
    target = _average(positive)
    if negative:
        target = [2 * good - bad for good, bad in zip(target, _average(negative), strict=True)]
    return edge.Query.Nearest(target, lookup.using)


def _average(vectors: list[Any]) -> list[float]:
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def _params(given: models.SearchParams | None) -> edge.SearchParams | None:
    if given is None:
        return None
    if given.idf is not None:
        raise unsupported("search parameter idf")
    quantization: Any = given.quantization
    acorn: Any = given.acorn
    return edge.SearchParams(
        hnsw_ef=given.hnsw_ef,
        exact=bool(given.exact),
        indexed_only=bool(given.indexed_only),
        quantization=quantization
        and edge.QuantizationSearchParams(bool(quantization.ignore), quantization.rescore, quantization.oversampling),
        acorn=acorn and edge.AcornSearchParams(bool(acorn.enable), acorn.max_selectivity),
    )

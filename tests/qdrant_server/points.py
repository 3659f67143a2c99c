"""Points: what changes them, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from qdrant_server.collection import Collection
from qdrant_server.config import Json, member
from qdrant_server.errors import ApiError, unsupported, wrong_input
from qdrant_server.filters import engine_filter, engine_id, engine_ids, optional_filter

Operations = list[edge.UpdateOperation]


def dense(collection: Collection, name: str, vector: Any) -> list[float]:
    """A vector that fits the collection. Checked here, because the engine applies half a batch before it finds a bad vector."""
    if not isinstance(vector, list) or (vector and not isinstance(vector[0], float)):
        raise unsupported("vectors that are not dense")
    size = collection.dimension(name)
    if len(vector) != size:
        raise wrong_input(f"Vector dimension error: expected dim: {size}, got {len(vector)}")
    if not math.isfinite(math.fsum(vector)):
        raise wrong_input("Vector is not finite")
    return vector


def _vectors(collection: Collection, given: Any) -> Any:
    if isinstance(given, dict):
        return {name: dense(collection, name, one) for name, one in given.items()}
    return dense(collection, "", given)


def upsert(collection: Collection, body: models.PointsList | models.PointsBatch) -> Operations:
    """Insert or overwrite points."""
    mode = None if body.update_mode is None else member(edge.UpdateMode, body.update_mode.value)
    points = [
        edge.Point(engine_id(point), _vectors(collection, vector), payload) for point, vector, payload in _rows(body)
    ]
    return [edge.UpdateOperation.upsert_points(points, optional_filter(body.update_filter), mode)]


def _rows(body: models.PointsList | models.PointsBatch) -> Iterable[tuple[Any, Any, Any]]:
    if isinstance(body, models.PointsList):
        return [(point.id, point.vector, point.payload) for point in body.points]
    batch = body.batch
    if isinstance(batch.vectors, dict):
        vectors: list[Any] = [
            dict(zip(batch.vectors, row, strict=True)) for row in zip(*batch.vectors.values(), strict=False)
        ]
    else:
        vectors = list(batch.vectors)
    payloads = batch.payloads if batch.payloads is not None else [None] * len(batch.ids)
    if not len(batch.ids) == len(vectors) == len(payloads):
        raise ApiError(
            422,
            "Validation error in JSON body: [batch: number of ids, vectors and payloads must match "
            f"({len(batch.ids)}, {len(vectors)}, {len(payloads)})]",
        )
    return zip(batch.ids, vectors, payloads, strict=True)


def delete(_collection: Collection, body: models.PointIdsList | models.FilterSelector) -> Operations:
    """Delete points by id or filter."""
    if isinstance(body, models.PointIdsList):
        return [edge.UpdateOperation.delete_points(engine_ids(body.points))]
    return [edge.UpdateOperation.delete_points_by_filter(engine_filter(body.filter))]


def clear_payload(_collection: Collection, body: models.PointIdsList | models.FilterSelector) -> Operations:
    """Remove whole payloads."""
    if isinstance(body, models.PointIdsList):
        return [edge.UpdateOperation.clear_payload(engine_ids(body.points))]
    return [edge.UpdateOperation.clear_payload_by_filter(engine_filter(body.filter))]


def set_payload(_collection: Collection, body: models.SetPayload) -> Operations:
    """Set payload fields; other fields stay, and null removes one."""
    if body.points is not None:
        return [edge.UpdateOperation.set_payload(engine_ids(body.points), body.payload, body.key)]
    return [edge.UpdateOperation.set_payload_by_filter(_selected(body), body.payload, body.key)]


def overwrite_payload(_collection: Collection, body: models.SetPayload) -> Operations:
    """Replace whole payloads."""
    if body.points is not None:
        return [edge.UpdateOperation.overwrite_payload(engine_ids(body.points), body.payload, body.key)]
    return [edge.UpdateOperation.overwrite_payload_by_filter(_selected(body), body.payload, body.key)]


def delete_payload(_collection: Collection, body: models.DeletePayload) -> Operations:
    """Remove payload fields."""
    if body.points is not None:
        return [edge.UpdateOperation.delete_payload(engine_ids(body.points), body.keys)]
    return [edge.UpdateOperation.delete_payload_by_filter(_selected(body), body.keys)]


def update_vectors(collection: Collection, body: models.UpdateVectors) -> Operations:
    """Replace vectors of existing points."""
    points = [edge.PointVectors(engine_id(one.id), _vectors(collection, one.vector)) for one in body.points]
    return [edge.UpdateOperation.update_vectors(points, optional_filter(body.update_filter))]


def delete_vectors(_collection: Collection, body: models.DeleteVectors) -> Operations:
    """Remove vectors by name."""
    if body.points is not None:
        return [edge.UpdateOperation.delete_vectors(engine_ids(body.points), body.vector)]
    return [edge.UpdateOperation.delete_vectors_by_filter(_selected(body), body.vector)]


def _selected(body: models.SetPayload | models.DeletePayload | models.DeleteVectors) -> edge.Filter:
    if body.filter is None:
        raise ApiError(422, "Validation error in JSON body: [Either list of ids or filter must be provided]")
    return engine_filter(body.filter)


def payload_choice(given: models.WithPayloadInterface | None, *, default: bool) -> Any:
    """Which payload fields to answer."""
    match given:
        case None:
            return default
        case models.PayloadSelectorInclude(include=fields):
            return edge.PayloadSelector.Include(fields)
        case models.PayloadSelectorExclude(exclude=fields):
            return edge.PayloadSelector.Exclude(fields)
    return given


def record(found: edge.Record | edge.ScoredPoint) -> Json:
    """A point as JSON."""
    point: Any = found.id
    answer: Json = {"id": point if isinstance(point, int) else str(point)}
    if isinstance(found, edge.ScoredPoint):
        answer |= {"version": found.version, "score": found.score}
    return answer | {"payload": found.payload, "vector": found.vector}

"""qdrant-client's filters -> the engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from uuid import UUID

import numpy as np
import qdrant_edge as edge
from qdrant_client import models

from qdrant_server.errors import format_error, unsupported

_MATCHES: dict[type, tuple[str, type]] = {
    models.MatchValue: ("value", edge.MatchValue),
    models.MatchText: ("text", edge.MatchText),
    models.MatchTextAny: ("text_any", edge.MatchTextAny),
    models.MatchPhrase: ("phrase", edge.MatchPhrase),
    models.MatchPrefix: ("prefix", edge.MatchPrefix),
    models.MatchSubstring: ("substring", edge.MatchSubstring),
    models.MatchAny: ("any", edge.MatchAny),
    models.MatchExcept: ("except_", edge.MatchExcept),
}
PointId = int | str | UUID
_T = TypeVar("_T")
_R = TypeVar("_R")


def engine_id(value: PointId) -> PointId:
    """A point id as Qdrant accepts it: an unsigned 64-bit integer or a UUID."""
    if isinstance(value, UUID):
        return value
    try:
        if isinstance(value, str):
            return UUID(value)
        if 0 <= value < 2**64:
            return value
    except ValueError:
        value = f'"{value}"'
    raise format_error(f"value {value} is not a valid point ID, valid values are either an unsigned integer or a UUID")


def engine_ids(values: Iterable[PointId]) -> list[PointId]:
    """Several point ids."""
    return [engine_id(value) for value in values]


def _if(given: _T | None, build: Callable[[_T], _R]) -> _R | None:
    return None if given is None else build(given)


def optional_filter(given: models.Filter | None) -> edge.Filter | None:
    """A filter, or None for none."""
    return _if(given, engine_filter)


def engine_filter(given: models.Filter) -> edge.Filter:
    """A filter."""
    return edge.Filter(
        must=_conditions(given.must),
        should=_conditions(given.should),
        must_not=_conditions(given.must_not),
        min_should=_if(given.min_should, lambda one: edge.MinShould(_conditions(one.conditions) or [], one.min_count)),
    )


def _conditions(given: Any) -> list[Any] | None:
    if given is None:
        return None
    return [_condition(one) for one in (given if isinstance(given, list) else [given])]


def _condition(given: Any) -> Any:
    match given:
        case models.Filter():
            return engine_filter(given)
        case models.FieldCondition():
            return _field(given)
        case models.IsEmptyCondition():
            return edge.IsEmptyCondition(given.is_empty.key)
        case models.IsNullCondition():
            return edge.IsNullCondition(given.is_null.key)
        case models.HasIdCondition():
            return edge.HasIdCondition(set(engine_ids(given.has_id)))
        case models.HasVectorCondition():
            return edge.HasVectorCondition(given.has_vector)
        case models.NestedCondition():
            return edge.NestedCondition(given.nested.key, engine_filter(given.nested.filter))
    raise unsupported(f"filter condition {type(given).__name__}")


def _field(given: models.FieldCondition) -> edge.FieldCondition:
    return edge.FieldCondition(
        given.key,
        match=_match(given.match),
        range=_range(given.range),
        geo_bounding_box=_if(
            given.geo_bounding_box, lambda box: edge.GeoBoundingBox(_geo(box.top_left), _geo(box.bottom_right))
        ),
        geo_radius=_if(given.geo_radius, lambda circle: edge.GeoRadius(_geo(circle.center), circle.radius)),
        geo_polygon=_if(
            given.geo_polygon,
            lambda area: edge.GeoPolygon(_line(area.exterior), [_line(x) for x in area.interiors or ()]),
        ),
        values_count=_if(given.values_count, lambda count: edge.ValuesCount(**_bounds(count))),
        is_empty=given.is_empty,
        is_null=given.is_null,
    )


def _match(given: Any) -> Any:
    if given is None:
        return None
    attribute, kind = _MATCHES[type(given)]
    value = getattr(given, attribute)
    # The engine takes Python's own bool for an integer, and then no payload matches.
    return kind(np.bool_(value) if isinstance(value, bool) else value)


def _range(given: models.Range | models.DatetimeRange | None) -> Any:
    if given is None:
        return None
    if isinstance(given, models.Range):
        return edge.RangeFloat(**_bounds(given))
    return edge.RangeDateTime(**{bound: value and value.isoformat() for bound, value in _bounds(given).items()})


def _bounds(given: Any) -> dict[str, Any]:
    return {bound: getattr(given, bound) for bound in ("gte", "gt", "lte", "lt")}


def _geo(given: models.GeoPoint) -> edge.GeoPoint:
    return edge.GeoPoint(lon=given.lon, lat=given.lat)


def _line(given: models.GeoLineString) -> list[edge.GeoPoint]:
    return [_geo(point) for point in given.points]

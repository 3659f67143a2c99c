"""The REST calls: path and body -> the catalog or a collection -> JSON."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import qdrant_edge as edge
from pydantic import TypeAdapter, ValidationError
from qdrant_client import models

from qdrant_server import points, queries
from qdrant_server.catalog import Catalog
from qdrant_server.collection import Collection
from qdrant_server.errors import format_error, not_found, unsupported
from qdrant_server.filters import engine_id, engine_ids, optional_filter
from qdrant_server.indexes import engine_schema


@dataclass(frozen=True, slots=True)
class Request:
    """One call: the catalog it is for, the variable parts of its path, its query and its body."""

    catalog: Catalog
    parts: tuple[str, ...]
    query: dict[str, list[str]]
    content: bytes

    @property
    def collection(self) -> Collection:
        return self.catalog.get(self.parts[0])

    def body(self, kind: Any) -> Any:
        """The body as a type of qdrant-client's."""
        try:
            body = _adapter(kind).validate_json(self.content)
        except ValidationError as exc:
            problem = exc.errors(include_url=False, include_input=False, include_context=False)[0]
            raise format_error(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from exc
        if getattr(body, "shard_key", None) is not None:
            raise unsupported("shard_key")
        return body

    def updated(self, number: int) -> dict[str, Any]:
        """What an update answers. All are applied at once; `wait=false` only changes the word, as with Qdrant."""
        waited = self.query.get("wait", ["false"])[0] == "true"
        return {"operation_id": number, "status": "completed" if waited else "acknowledged"}


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


Handler = Callable[[Request], Any]
_Change = Callable[[Collection, Any], points.Operations]

_OPERATIONS: dict[str, tuple[Any, _Change]] = {
    "upsert": (models.PointInsertOperations, points.upsert),
    "delete": (models.PointsSelector, points.delete),
    "set_payload": (models.SetPayload, points.set_payload),
    "overwrite_payload": (models.SetPayload, points.overwrite_payload),
    "delete_payload": (models.DeletePayload, points.delete_payload),
    "clear_payload": (models.PointsSelector, points.clear_payload),
    "update_vectors": (models.UpdateVectors, points.update_vectors),
    "delete_vectors": (models.DeleteVectors, points.delete_vectors),
}


def _change(name: str) -> Handler:
    kind, build = _OPERATIONS[name]

    def handler(request: Request) -> Any:
        collection = request.collection
        return request.updated(collection.apply(build(collection, request.body(kind))))

    return handler


def _batch(request: Request) -> Any:
    collection, answers = request.collection, []
    for operation in request.body(models.UpdateOperations).operations:
        ((name, body),) = operation
        answers.append(request.updated(collection.apply(_OPERATIONS[name][1](collection, body))))
    return answers


def _create_index(request: Request) -> Any:
    body = request.body(models.CreateFieldIndex)
    for_engine, schema = engine_schema(body.field_schema)
    return request.updated(request.catalog.set_index(request.parts[0], body.field_name, for_engine, schema))


def _drop_index(request: Request) -> Any:
    name, field = request.parts
    return request.updated(request.catalog.set_index(name, field, None, None))


def _retrieve(request: Request) -> Any:
    collection, body = request.collection, request.body(models.PointRequest)
    with collection.engine() as shard:
        payload = points.payload_choice(body.with_payload, default=True)
        return [points.record(one) for one in shard.retrieve(engine_ids(body.ids), payload, body.with_vector or False)]


def _point(request: Request) -> Any:
    text = request.parts[1]
    point = engine_id(int(text) if text.isdecimal() else text)
    with request.collection.engine() as shard:
        found = shard.retrieve([point], True, True)
    if not found:
        raise not_found(f"Point with id {text} does not exists!")
    return points.record(found[0])


def _scroll(request: Request) -> Any:
    collection, body = request.collection, request.body(models.ScrollRequest)
    if body.order_by is not None:
        raise unsupported("scroll option order_by")
    wanted = edge.ScrollRequest(
        offset=None if body.offset is None else engine_id(body.offset),
        limit=queries.limit_of(body.limit, default=10),
        filter=optional_filter(body.filter),
        with_payload=points.payload_choice(body.with_payload, default=True),
        with_vector=body.with_vector or False,
    )
    with collection.engine() as shard:
        found, following = shard.scroll(wanted)
    offset = following if following is None or isinstance(following, int) else str(following)
    return {"points": [points.record(one) for one in found], "next_page_offset": offset}


def _count(request: Request) -> Any:
    collection, body = request.collection, request.body(models.CountRequest)
    with collection.engine() as shard:
        return {"count": shard.count(edge.CountRequest(body.exact is not False, optional_filter(body.filter)))}


def _facet(request: Request) -> Any:
    collection, body = request.collection, request.body(models.FacetRequest)
    limit = queries.limit_of(body.limit, default=10)
    with collection.engine() as shard:
        found = shard.facet(edge.FacetRequest(body.key, limit, bool(body.exact), optional_filter(body.filter)))
        return {"hits": [{"value": hit.value, "count": hit.count} for hit in found.hits]}


def _query(request: Request) -> Any:
    return _queries(request.collection, [request.body(models.QueryRequest)])[0]


def _query_batch(request: Request) -> Any:
    return _queries(request.collection, request.body(models.QueryRequestBatch).searches)


def _queries(collection: Collection, bodies: list[models.QueryRequest]) -> list[Any]:
    with collection.engine() as shard:
        wanted = [queries.query_request(collection, shard, body) for body in bodies]
        answers = shard.query_batch(edge.QueryBatchRequest(wanted)) if wanted else []
    return [{"points": [points.record(one) for one in found]} for found in answers]


def _query_groups(request: Request) -> Any:
    collection, body = request.collection, request.body(models.QueryGroupsRequest)
    if set(".[") & set(body.group_by) or body.with_lookup is not None or body.with_payload is not True:
        raise unsupported("groups by a nested field, with a lookup, or without payload")
    with collection.engine() as shard:
        rest = body.model_dump(exclude={"group_by", "group_size", "with_lookup"}, exclude_unset=True)
        # Everything there is, in order: the server asks in rounds until its groups are full, to the same effect.
        everything = max(1, shard.count(edge.CountRequest(True)))
        wanted = queries.query_request(collection, shard, models.QueryRequest(**{**rest, "limit": everything}))
        return {"groups": queries.grouped(shard.query(wanted), body)}


_ONE = "/collections/([^/]+)"
_POINTS = _ONE + "/points"
_ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/collections", lambda r: {"collections": [{"name": name} for name in r.catalog.names()]}),
    ("POST", "/collections/aliases", lambda r: r.catalog.change_aliases(r.body(models.ChangeAliasesOperation).actions)),
    ("GET", "/aliases", lambda r: {"aliases": r.catalog.aliases()}),
    ("GET", _ONE + "/aliases", lambda r: {"aliases": r.catalog.aliases(r.parts[0])}),
    ("GET", _ONE + "/exists", lambda r: {"exists": r.catalog.exists(r.parts[0])}),
    ("GET", _ONE, lambda r: r.collection.info()),
    ("PUT", _ONE, lambda r: r.catalog.create(r.parts[0], r.body(models.CreateCollection))),
    ("PATCH", _ONE, lambda r: r.catalog.update(r.parts[0], r.body(models.UpdateCollection))),
    ("DELETE", _ONE, lambda r: r.catalog.delete(r.parts[0])),
    ("PUT", _ONE + "/index", _create_index),
    ("DELETE", _ONE + "/index/([^/]+)", _drop_index),
    ("POST", _ONE + "/facet", _facet),
    ("PUT", _POINTS, _change("upsert")),
    ("POST", _POINTS, _retrieve),
    ("POST", _POINTS + "/delete", _change("delete")),
    ("POST", _POINTS + "/payload", _change("set_payload")),
    ("PUT", _POINTS + "/payload", _change("overwrite_payload")),
    ("POST", _POINTS + "/payload/delete", _change("delete_payload")),
    ("POST", _POINTS + "/payload/clear", _change("clear_payload")),
    ("PUT", _POINTS + "/vectors", _change("update_vectors")),
    ("POST", _POINTS + "/vectors/delete", _change("delete_vectors")),
    ("POST", _POINTS + "/batch", _batch),
    ("POST", _POINTS + "/scroll", _scroll),
    ("POST", _POINTS + "/count", _count),
    ("POST", _POINTS + "/query", _query),
    ("POST", _POINTS + "/query/batch", _query_batch),
    ("POST", _POINTS + "/query/groups", _query_groups),
    ("GET", _POINTS + "/([^/]+)", _point),
]
_COMPILED = [(method, re.compile(pattern), handler) for method, pattern, handler in _ROUTES]


def answer(catalog: Catalog, method: str, target: str, content: bytes) -> Any:
    """The `result` of one call.

    Raises:
        ApiError: it has none.
    """
    where = urlsplit(target)
    path = where.path.rstrip("/")
    for wanted, pattern, handler in _COMPILED:
        found = pattern.fullmatch(path) if wanted == method else None
        if found:
            parts = tuple(unquote(part) for part in found.groups())
            return handler(Request(catalog, parts, parse_qs(where.query), content))
    raise unsupported(f"{method} {where.path}")

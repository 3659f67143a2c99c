"""Payload index schemas -> the engine's."""

from __future__ import annotations

from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from qdrant_server.config import member, plain
from qdrant_server.errors import unsupported, wrong_input

_KINDS: dict[str, Any] = {
    "keyword": edge.KeywordIndexParams,
    "integer": edge.IntegerIndexParams,
    "float": edge.FloatIndexParams,
    "geo": edge.GeoIndexParams,
    "text": edge.TextIndexParams,
    "bool": edge.BoolIndexParams,
    "datetime": edge.DatetimeIndexParams,
    "uuid": edge.UuidIndexParams,
}
_ENUMS: dict[str, Any] = {"tokenizer": edge.TokenizerType, "memory": edge.Memory}


def engine_schema(given: Any) -> tuple[Any, Any]:
    """The engine's schema, and the JSON to report: a word, or parameters."""
    if given is None:
        raise wrong_input("field_schema is required")
    if isinstance(given, models.PayloadSchemaType):
        return member(edge.PayloadSchemaType, given.value), given.value
    schema = plain(given)
    options = dict(schema)
    kind = options.pop("type")
    for name in ("stopwords", "stemmer", "scoring"):
        if name in options:
            raise unsupported(f"payload index option {name}")
    for name, enum in _ENUMS.items():
        if name in options:
            options[name] = member(enum, options[name])
    return _KINDS[kind](**options), schema

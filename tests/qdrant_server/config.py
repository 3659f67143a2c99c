"""A collection's configuration: kept as the JSON that `GET /collections/NAME` answers, and as the engine takes it."""

from __future__ import annotations

import copy
from typing import Any

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models

from qdrant_server.errors import unsupported, wrong_input

Json = dict[str, Any]

# The defaults of Qdrant's own config/config.yaml.
_HNSW: Json = {
    "m": 16,
    "ef_construct": 100,
    "full_scan_threshold": 10000,
    "max_indexing_threads": 0,
    "on_disk": False,
}
_OPTIMIZERS: Json = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "max_segment_size": None,
    "memmap_threshold": None,
    "indexing_threshold": 10000,
    "flush_interval_sec": 5,
    "max_optimization_threads": None,
}
_WAL: Json = {"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1}
_ENGINE_OPTIMIZERS = (
    "deleted_threshold",
    "vacuum_min_vector_number",
    "default_segment_number",
    "max_segment_size",
    "indexing_threshold",
    "prevent_unoptimized",
)
_SEARCH_THREADS = 2


def plain(given: BaseModel | None) -> Json:
    """A model as JSON, without what was not said."""
    return given.model_dump(mode="json", by_alias=True, exclude_none=True) if given is not None else {}


def member(enum: Any, value: object) -> Any:
    """The engine's constant for a word of the REST API: `int8` -> `ScalarType.Int8`."""
    wanted = str(value).replace("_", "").lower()
    for name in dir(enum):
        if not name.startswith("_") and name.replace("_", "").lower() == wanted:
            return getattr(enum, name)
    raise unsupported(f"{enum.__name__} {value}")


def new_config(body: models.CreateCollection) -> Json:
    """The configuration of a new collection."""
    if body.sparse_vectors or not body.vectors:
        raise unsupported("collections with sparse vectors or without any")
    for option in ("sharding_method", "strict_mode_config"):
        if getattr(body, option) is not None:
            raise unsupported(option)
    given = body.vectors
    params = {
        "vectors": {n: plain(one) for n, one in given.items()} if isinstance(given, dict) else plain(given),
        "shard_number": body.shard_number or 1,
        "replication_factor": body.replication_factor or 1,
        "write_consistency_factor": body.write_consistency_factor or 1,
        "on_disk_payload": True if body.on_disk_payload is None else body.on_disk_payload,
    }
    config: Json = {
        "params": params,
        "hnsw_config": _HNSW | plain(body.hnsw_config),
        "optimizer_config": _with_optimizers(_OPTIMIZERS, body.optimizers_config),
        "wal_config": _WAL | plain(body.wal_config),
        "quantization_config": plain(body.quantization_config) or None,
    }
    if body.metadata is not None:
        config["metadata"] = body.metadata
    return config


def changed_config(config: Json, body: models.UpdateCollection) -> Json:
    """The configuration after an update."""
    for option in ("sparse_vectors", "strict_mode_config"):
        if getattr(body, option) is not None:
            raise unsupported(option)
    config = copy.deepcopy(config)
    config["params"] |= plain(body.params)
    config["hnsw_config"] |= plain(body.hnsw_config)
    config["optimizer_config"] = _with_optimizers(config["optimizer_config"], body.optimizers_config)
    if body.quantization_config is not None:
        change = body.quantization_config
        config["quantization_config"] = None if isinstance(change, models.Disabled) else plain(change)
    for name, diff in (body.vectors or {}).items():
        _change_vector(config["params"]["vectors"], name, plain(diff))
    if body.metadata is not None:
        config["metadata"] = _merged(config.get("metadata"), body.metadata)
    return config


def _change_vector(vectors: Json, name: str, diff: Json) -> None:
    params = vectors_by_name(vectors).get(name)
    if params is None:
        raise wrong_input(f"Not existing vector name error: {name}")
    if diff.get("quantization_config") == models.Disabled.DISABLED.value:
        del diff["quantization_config"]
        params.pop("quantization_config", None)
    if "hnsw_config" in diff:
        params["hnsw_config"] = params.get("hnsw_config", {}) | diff.pop("hnsw_config")
    params |= diff


def _merged(metadata: Json | None, changes: Json) -> Json:
    """Qdrant merges by top-level key, and null removes a key; the first metadata is taken as it comes."""
    if metadata is None:
        return changes
    return {key: value for key, value in {**metadata, **changes}.items() if changes.get(key, ...) is not None}


def _with_optimizers(before: Json, diff: models.OptimizersConfigDiff | None) -> Json:
    after = before | plain(diff)
    if after.get("max_optimization_threads") == "auto":  # reported as absent
        after["max_optimization_threads"] = None
    return after


def vectors_by_name(vectors: Json) -> dict[str, Json]:
    """Vector parameters by name; the unnamed vector is called ``""``."""
    return {"": vectors} if isinstance(vectors.get("size"), int) else vectors


def engine_config(config: Json) -> edge.EdgeConfig:
    """The engine's configuration.

    HNSW and quantization go to each vector rather than to the whole, because the engine keeps a setting of the whole that is
    not given again, and so could not switch one off.
    """
    optimizers = config["optimizer_config"]
    return edge.EdgeConfig(
        vectors={name: _vector(one, config) for name, one in vectors_by_name(config["params"]["vectors"]).items()},
        on_disk_payload=config["params"]["on_disk_payload"],
        optimizers=edge.EdgeOptimizersConfig(**{name: optimizers.get(name) for name in _ENGINE_OPTIMIZERS}),
        max_search_threads=_SEARCH_THREADS,
    )


def _vector(params: Json, config: Json) -> edge.EdgeVectorParams:
    if params.get("multivector_config"):
        raise unsupported("multivectors")
    datatype, memory = params.get("datatype"), params.get("memory")
    return edge.EdgeVectorParams(
        size=params["size"],
        distance=member(edge.Distance, params["distance"]),
        on_disk=params.get("on_disk"),
        datatype=datatype and member(edge.VectorStorageDatatype, datatype),
        memory=memory and member(edge.Memory, memory),
        hnsw_config=_hnsw(config["hnsw_config"] | params.get("hnsw_config", {})),
        quantization_config=_quantization(params.get("quantization_config") or config["quantization_config"]),
    )


def _hnsw(options: Json) -> edge.HnswIndexConfig:
    if "memory" in options:
        options = options | {"memory": member(edge.Memory, options["memory"])}
    return edge.HnswIndexConfig(**options)


def _quantization(given: Json | None) -> Any:
    if not given:
        return None
    ((kind, options),) = given.items()
    engine_kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "scalar": (edge.ScalarQuantizationConfig, {"type": edge.ScalarType}),
        "product": (edge.ProductQuantizationConfig, {"compression": edge.CompressionRatio}),
        "binary": (
            edge.BinaryQuantizationConfig,
            {"encoding": edge.BinaryQuantizationEncoding, "query_encoding": edge.BinaryQuantizationQueryEncoding},
        ),
        "turbo": (edge.TurboQuantQuantizationConfig, {"bits": edge.TurboQuantBitSize}),
    }
    build, enums = engine_kinds[kind]
    enums["memory"] = edge.Memory
    return build(**{name: member(enums[name], value) if name in enums else value for name, value in options.items()})

"""The collection that holds one model's vectors: created, recognised, adopted, and told its sources."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcip_qdrant.errors import ConfigurationError, ForeignCollectionError, SourceError, SpaceMismatchError, StoreError
from mcip_qdrant.keys import decode_path, encode_path
from mcip_qdrant.manifest import Manifest
from mcip_qdrant.store import Store

if TYPE_CHECKING:
    from qdrant_client import models

METADATA_KEY = "mcip_qdrant"
COLLECTION_FORMAT = 1
# Qdrant merges collection metadata by top-level key only: each source has a key of its own, or two runs would erase each other's.
_SOURCE_KEY = "mcip_qdrant_source:"

DEFAULT_INDEXES: Mapping[str, str] = {"source": "keyword", "sha256": "keyword", "run_id": "keyword"}
INDEX_TYPES = ("keyword", "integer", "float", "bool", "datetime", "text", "geo", "uuid")

_ATTEMPTS = 4


def ensure_collection(store: Store, name: str, manifest: Manifest, indexes: Mapping[str, str]) -> bool:
    """Create the collection with its payload indexes, or check that the one that exists holds this model's vectors.

    Payload indexes come before any point, because Qdrant builds its filterable links with them.

    Returns:
        True if the collection was created.

    Raises:
        SpaceMismatchError, ForeignCollectionError: it exists and is not this model's.
        StoreError: Qdrant refused.
    """
    from qdrant_client import models

    created = False
    if describe(store, name) is None:
        vectors = models.VectorParams(size=manifest.embedding_dim, distance=models.Distance.COSINE)
        try:
            store.call(
                lambda client: client.create_collection(
                    name, vectors_config=vectors, metadata={METADATA_KEY: _identity(manifest)}
                )
            )
            created = True
        except StoreError:
            # Another process may have been faster; then the check below decides.
            if describe(store, name) is None:
                raise
    check_space(store, name, manifest)
    if not store.embedded:  # local mode has no payload indexes and warns about each
        for field, kind in {**DEFAULT_INDEXES, **indexes}.items():
            _index_payload(store, name, field, models.PayloadSchemaType(kind))
    return created


def _index_payload(store: Store, name: str, field: str, schema: models.PayloadSchemaType) -> None:
    store.call(lambda client: client.create_payload_index(name, field, schema, wait=True), attempts=_ATTEMPTS)


def own_name(store: Store, name: str, *, attempts: int = _ATTEMPTS) -> str:
    """The name of the collection that an alias stands for now; any other name is given back as it is.

    Who works on a collection by its own name cannot be led to another one by an alias that moves.

    Raises:
        StoreError: Qdrant failed.
    """
    try:
        known = store.call(lambda client: client.get_aliases(), attempts=attempts).aliases
    except ConfigurationError:
        # A key for one collection alone may not list aliases. Then the name is used as given.
        return name
    return next((alias.collection_name for alias in known if alias.alias_name == name), name)


def describe(store: Store, name: str, *, attempts: int = _ATTEMPTS) -> models.CollectionInfo | None:
    """What Qdrant says of a collection or alias, or None where there is none.

    Raises:
        StoreError: Qdrant failed.
    """
    try:
        return store.call(lambda client: client.get_collection(name), attempts=attempts)
    except StoreError as exc:
        if is_missing(exc):
            return None
        raise


def is_missing(error: StoreError) -> bool:
    """Whether an error says that there is no such collection: over REST, gRPC or in local mode."""
    from grpc import RpcError, StatusCode

    cause = error.__cause__
    if isinstance(cause, RpcError):
        return bool(cause.code() == StatusCode.NOT_FOUND)
    return getattr(cause, "status_code", None) == 404 or (isinstance(cause, ValueError) and "not found" in str(cause))


def check_space(store: Store, name: str, manifest: Manifest, *, attempts: int = _ATTEMPTS) -> None:
    """Compare a collection with a bundle before the first write or query.

    Raises:
        StoreError: no such collection.
        SpaceMismatchError: it holds another model's vectors; both models are named.
        ForeignCollectionError: it was not made by mcip-qdrant.
    """
    info = describe(store, name, attempts=attempts)
    if info is None:
        raise StoreError(
            f"Qdrant at {store.location} has no collection {name!r}. Fill it first: mcip-qdrant ingest FOLDER --collection {name}"
        )
    identity = (info.config.metadata or {}).get(METADATA_KEY)
    if not isinstance(identity, dict):
        _check_vectors(name, info, manifest)
        raise ForeignCollectionError(
            f"collection {name!r} was not made by mcip-qdrant, so nothing says which model its vectors come from. "
            f"Its vectors have the right size ({manifest.embedding_dim}). If you know that {manifest.model} "
            f"(space_id {manifest.space_id[:12]}) made them, adopt it: "
            f"mcip-qdrant adopt --qdrant {store.location} --collection {name} --bundle BUNDLE; "
            "otherwise choose another --collection"
        )
    if identity.get("space_id") != manifest.space_id:
        raise SpaceMismatchError(
            f"collection {name!r} holds vectors of {identity.get('model')} (space_id {str(identity.get('space_id'))[:12]}), "
            f"but the bundle is {manifest.model} (space_id {manifest.space_id[:12]}). Their scores would mean nothing. "
            "Use the bundle that the collection was made with, or ingest into a new --collection"
        )
    if identity.get("format") != COLLECTION_FORMAT:
        raise SpaceMismatchError(
            f"collection {name!r} has format {identity.get('format')!r}, this mcip-qdrant writes {COLLECTION_FORMAT}; "
            "use the version that made it"
        )
    _check_vectors(name, info, manifest)


def adoptable(store: Store, name: str, manifest: Manifest) -> bool:
    """Whether a collection made by other software could hold this bundle's vectors; False where it is this model's already.

    Raises:
        StoreError: no such collection.
        SpaceMismatchError: it belongs to another model, or its vectors have another size, distance or name.
    """
    info = describe(store, name)
    if info is None:
        raise StoreError(f"Qdrant at {store.location} has no collection {name!r} to adopt")
    if METADATA_KEY in (info.config.metadata or {}):
        check_space(store, name, manifest)
        return False
    _check_vectors(name, info, manifest)
    return True


def claim(store: Store, name: str, manifest: Manifest) -> None:
    """Write into a collection's metadata that it holds this bundle's vectors. `adoption.adopt` makes sure of that first.

    Raises:
        StoreError, SpaceMismatchError: as `adoptable`.
    """
    if adoptable(store, name, manifest):
        store.call(lambda client: client.update_collection(name, metadata={METADATA_KEY: _identity(manifest)}))


def register_source(store: Store, name: str, source: str, root: Path, *, moved: bool = False) -> None:
    """Remember which folder a source name stands for, and refuse a name that stands for another one.

    Raises:
        SourceError: the name belongs to another root and `moved` is False.
    """
    info = describe(store, name)
    key, encoded = _SOURCE_KEY + source, encode_path(str(root))
    known = ((info.config.metadata if info else None) or {}).get(key)
    if known is not None and known.get("root") != encoded and not moved:
        raise SourceError(
            f"source {source!r} in collection {name!r} already stands for {known.get('root')}, not {encoded}. "
            "If the archive moved there, say --moved; if this is another archive, give it a name of its own: --source NAME"
        )
    if known is None or known.get("root") != encoded:
        store.call(lambda client: client.update_collection(name, metadata={key: {"root": encoded}}), attempts=_ATTEMPTS)


def registered_root(store: Store, name: str, source: str) -> Path | None:
    """The folder that a source name stands for where the archive was listed, or None if nobody registered it.

    Raises:
        StoreError: Qdrant failed.
    """
    info = describe(store, name)
    known = ((info.config.metadata if info else None) or {}).get(_SOURCE_KEY + source)
    return Path(os.fsdecode(decode_path(known["root"]))) if known else None


def _identity(manifest: Manifest) -> dict[str, Any]:
    return {
        "space_id": manifest.space_id,
        "model": manifest.model,
        "embedding_dim": manifest.embedding_dim,
        "format": COLLECTION_FORMAT,
    }


def _check_vectors(name: str, info: models.CollectionInfo, manifest: Manifest) -> None:
    from qdrant_client import models

    vectors = info.config.params.vectors
    if not isinstance(vectors, models.VectorParams):
        found = f"named vectors ({', '.join(vectors)})" if vectors else "no dense vector"
        raise SpaceMismatchError(f"collection {name!r} has {found}; mcip-qdrant uses one unnamed vector per point")
    if vectors.size != manifest.embedding_dim or vectors.distance != models.Distance.COSINE:
        raise SpaceMismatchError(
            f"collection {name!r} holds {vectors.distance} vectors of size {vectors.size}; "
            f"{manifest.model} gives Cosine vectors of size {manifest.embedding_dim}. Use another --collection"
        )

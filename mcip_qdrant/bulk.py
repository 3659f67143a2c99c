"""A bulk load: Qdrant builds no HNSW links while points pour in, and builds them once afterwards.

The settings to go back to are kept in the collection's own metadata, so that they survive a killed process: the next run of any kind
puts them back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mcip_qdrant.collection import describe
from mcip_qdrant.errors import StoreError
from mcip_qdrant.store import Store

# A metadata key of its own: Qdrant merges metadata by top-level key only.
METADATA_KEY = "mcip_qdrant_bulk"
_ATTEMPTS = 9


@contextmanager
def bulk_load(store: Store, name: str, *, defer: bool) -> Iterator[None]:
    """Run a load; afterwards HNSW is as it was before, also where an earlier bulk load was killed.

    Args:
        defer: do without HNSW meanwhile (`m = 0`). Embedded mode has none.

    Raises:
        StoreError: Qdrant refused, or stayed away.
    """
    if store.embedded:
        yield
        return
    if defer:
        _defer(store, name)
    try:
        yield
    finally:
        _restore(store, name)


def _defer(store: Store, name: str) -> None:
    info = describe(store, name)
    if info is None:
        raise StoreError(f"Qdrant at {store.location} has no collection {name!r}")
    if not (info.config.metadata or {}).get(METADATA_KEY):
        # What to go back to is written first: killed in between, the next run restores what was never changed.
        _update(store, name, metadata={METADATA_KEY: {"m": info.config.hnsw_config.m}})
    _update(store, name, m=0)


def _restore(store: Store, name: str) -> None:
    info = describe(store, name)
    saved = ((info.config.metadata if info else None) or {}).get(METADATA_KEY)
    if saved:
        _update(store, name, m=int(saved["m"]))
        _update(store, name, metadata={METADATA_KEY: {}})


def _update(store: Store, name: str, *, m: int | None = None, metadata: dict[str, Any] | None = None) -> None:
    from qdrant_client import models

    hnsw = None if m is None else models.HnswConfigDiff(m=m)
    store.call(lambda client: client.update_collection(name, hnsw_config=hnsw, metadata=metadata), attempts=_ATTEMPTS)

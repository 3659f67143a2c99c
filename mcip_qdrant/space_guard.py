"""Reads that are only ever answered by this model's collection, however aliases and collections move meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mcip_qdrant.collection import check_space, is_missing, own_name
from mcip_qdrant.errors import StoreError, StoreUnavailableError
from mcip_qdrant.manifest import Manifest
from mcip_qdrant.store import Store

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

READ_ATTEMPTS = 2
"""A read is tried once more where Qdrant is away or overloaded."""

RECHECK_S = 2.0
"""How long a check holds."""

_T = TypeVar("_T")


class SpaceGuard:
    """Knows which collection a name or alias stands for, and that it holds the vectors of one model.

    Reads go to that collection by its own name, so an alias that moves in between cannot lead them to another model's. What the name
    stands for is read again, and checked again, after `RECHECK_S` seconds and whenever Qdrant refuses a read. A collection that is
    deleted and filled anew under the same name by another model is noticed by the same check, so at most `RECHECK_S` late.
    """

    def __init__(self, store: Store, name: str, manifest: Manifest) -> None:
        self._store = store
        self._name = name
        self._manifest = manifest
        self._lock = threading.Lock()
        self._collection: str | None = None
        self._checked_at = 0.0
        self._away: StoreUnavailableError | None = None
        self._away_at = 0.0

    def read(self, action: Callable[[QdrantClient, str], _T]) -> _T:
        """Run one read on the client and the collection's own name.

        Raises:
            SpaceMismatchError, ForeignCollectionError: the collection is not this model's (any more).
            StoreUnavailableError: Qdrant is away, also at the second attempt.
            StoreError: no such collection, or Qdrant refused.
        """
        collection = self.collection()
        try:
            return self._run(action, collection)
        except StoreUnavailableError:
            raise
        except StoreError as exc:
            # If the collection was replaced, that is the reason to tell; if the alias had moved, there is an answer.
            now = self._check_again(collection)
            if now == collection and not is_missing(exc):
                raise
            return self._run(action, now)

    def collection(self) -> str:
        """The collection's own name, checked at most `RECHECK_S` seconds ago.

        Raises:
            SpaceMismatchError, ForeignCollectionError, StoreError: as `read`.
        """
        asked_at = time.monotonic()
        with self._lock:
            self._refuse_if_away_since(asked_at)
            if self._collection is None or time.monotonic() - self._checked_at > RECHECK_S:
                return self._check()
            return self._collection

    def _run(self, action: Callable[[QdrantClient, str], _T], collection: str) -> _T:
        return self._store.call(lambda client: action(client, collection), attempts=READ_ATTEMPTS)

    def _check_again(self, refused: str) -> str:
        asked_at = time.monotonic()
        with self._lock:
            self._refuse_if_away_since(asked_at)
            # Many reads may be refused at once; one check serves them all.
            if self._collection is not None and self._collection != refused:
                return self._collection
            return self._check()

    def _refuse_if_away_since(self, asked_at: float) -> None:
        # A Qdrant that hangs costs each check its whole timeout; threads that waited for one check must not pay it again in turn.
        if self._away is not None and self._away_at > asked_at:
            raise StoreUnavailableError(str(self._away)) from self._away

    def _check(self) -> str:
        self._collection = None
        try:
            collection = own_name(self._store, self._name, attempts=READ_ATTEMPTS)
            check_space(self._store, collection, self._manifest, attempts=READ_ATTEMPTS)
        except StoreUnavailableError as exc:
            self._away, self._away_at = exc, time.monotonic()
            raise
        self._collection, self._checked_at = collection, time.monotonic()
        return collection

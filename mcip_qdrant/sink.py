"""Points -> Qdrant: look up, write, update, delete; each repeatable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.spill import batched
from mcip_qdrant.store import Store

# Attempts with exponential backoff and jitter (0.5 s doubling to 20 s): about a minute and a half before a run gives up.
_ATTEMPTS = 9
_SCROLL_PAGE = 1000
_DELETE_BATCH = 500


@dataclass(frozen=True, slots=True)
class QdrantSink:
    """One collection to write into. A call is tried `attempts` times while Qdrant is away."""

    store: Store
    collection: str
    attempts: int = _ATTEMPTS

    def known(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Payloads of those points that exist, by point id."""
        records = self.store.call(
            lambda client: client.retrieve(self.collection, ids, with_payload=True, with_vectors=False),
            attempts=self.attempts,
        )
        return {str(record.id): record.payload or {} for record in records}

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32], payloads: Sequence[dict[str, Any]]) -> None:
        """Insert or overwrite points; returns once Qdrant has applied them. `vectors` is float32 `[N, D]`."""
        from qdrant_client import models

        batch = models.Batch(ids=list(ids), vectors=vectors.tolist(), payloads=list(payloads))
        self.store.call(lambda client: client.upsert(self.collection, batch, wait=True), attempts=self.attempts)

    def update_payloads(self, changes: Mapping[str, dict[str, Any]]) -> None:
        """Set payload fields on existing points, by point id; other fields stay."""
        from qdrant_client import models

        if not changes:
            return
        operations: list[models.UpdateOperation] = [
            models.SetPayloadOperation(set_payload=models.SetPayload(payload=fields, points=[point]))
            for point, fields in changes.items()
        ]
        self.store.call(
            lambda client: client.batch_update_points(self.collection, operations, wait=True), attempts=self.attempts
        )

    def ids_of_source(self, source: str) -> Iterator[tuple[str, str]]:
        """(point id, key) of every point of a source."""
        offset: Any = None
        while True:
            page, offset = self._scroll(source, offset)
            for record in page:
                yield str(record.id), str((record.payload or {}).get("key", record.id))
            if offset is None:
                return

    def _scroll(self, source: str, offset: Any) -> tuple[list[Any], Any]:
        from qdrant_client import models

        of_source = models.Filter(must=[models.FieldCondition(key="source", match=models.MatchValue(value=source))])
        return self.store.call(
            lambda client: client.scroll(
                self.collection, scroll_filter=of_source, limit=_SCROLL_PAGE, offset=offset, with_payload=["key"]
            ),
            attempts=self.attempts,
        )

    def delete(self, ids: Iterable[str]) -> None:
        """Delete points by id."""
        for some in batched(ids, _DELETE_BATCH):
            self._delete_some(some)

    def _delete_some(self, ids: Sequence[str]) -> None:
        from qdrant_client import models

        selected = models.PointIdsList(points=list(ids))
        self.store.call(lambda client: client.delete(self.collection, selected, wait=True), attempts=self.attempts)

    def count(self) -> int:
        """Points in the collection."""
        return self.store.call(lambda client: client.count(self.collection, exact=True), attempts=self.attempts).count

"""A sink that looks at the collection again just before each write: it may have been replaced under a running worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.collection import check_space, own_name
from mcip_qdrant.manifest import Manifest
from mcip_qdrant.sink import QdrantSink
from mcip_qdrant.store import Store


@dataclass(frozen=True, slots=True)
class GuardedSink:
    """`QdrantSink` for workers."""

    sink: QdrantSink
    manifest: Manifest

    @classmethod
    def of(cls, store: Store, name: str, manifest: Manifest, *, attempts: int) -> Self:
        """The sink of one chunk: what an alias stands for now gets all of it, wherever the alias moves meanwhile.

        Raises:
            StoreError: Qdrant failed.
        """
        return cls(QdrantSink(store, own_name(store, name, attempts=attempts), attempts), manifest)

    def known(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Payloads of those points that exist. Another model's points with these ids would pass for unchanged images.

        Raises:
            SpaceMismatchError, ForeignCollectionError: the collection is not this model's any more.
        """
        found = self.sink.known(ids)
        if found:
            self._check()
        return found

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32], payloads: Sequence[dict[str, Any]]) -> None:
        """Insert or overwrite points.

        Raises:
            SpaceMismatchError, ForeignCollectionError: the collection is not this model's any more.
        """
        self._check()
        self.sink.upsert(ids, vectors, payloads)

    def update_payloads(self, changes: Mapping[str, dict[str, Any]]) -> None:
        """Set payload fields on existing points."""
        if changes:
            self._check()
            self.sink.update_payloads(changes)

    def _check(self) -> None:
        check_space(self.sink.store, self.sink.collection, self.manifest)

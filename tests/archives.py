"""A small archive with copies, as vectors and payloads in memory, that tests load into any Qdrant they want."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from photos import write_archive
from qdrant_client import QdrantClient, models

from mcip_qdrant import QueryEncoder
from mcip_qdrant.collection import ensure_collection
from mcip_qdrant.keys import file_uri, point_id
from mcip_qdrant.sink import QdrantSink
from mcip_qdrant.store import Store

PHOTOS, COPIES = 24, 8


@dataclass(frozen=True)
class Archive:
    """Photographs of source `s`, the first eight of them once more as `copy-…`. Rows of everything are in one order."""

    folder: Path
    keys: list[str]
    vectors: NDArray[np.float32]
    payloads: list[dict[str, Any]]

    def vector(self, key: str) -> NDArray[np.float64]:
        """One image's vector in float64."""
        found: NDArray[np.float64] = self.vectors[self.keys.index(key)].astype(np.float64)
        return found

    def ranked(self, query: Any, *, without: tuple[str, ...] = (), copies: bool = False) -> list[str]:
        """Keys by falling cosine to a query; of equal files the one with the lower id, as Qdrant orders equal scores by none."""
        scores = self.vectors.astype(np.float64) @ np.asarray(query, dtype=np.float64)
        order = sorted(range(len(self.keys)), key=lambda row: -scores[row])
        seen, kept = {self.digest(key) for key in without} if not copies else set(), []
        for key in (self.keys[row] for row in order):
            if key not in without and (copies or self.digest(key) not in seen):
                kept.append(key)
                seen.add(self.digest(key))
        return kept

    def digest(self, key: str) -> str:
        """SHA-256 of the file."""
        return str(self.payloads[self.keys.index(key)]["sha256"])

    def digests(self, keys: list[str]) -> list[str]:
        """What identifies images where copies may stand for each other."""
        return [self.digest(key) for key in keys]

    def load(self, client: QdrantClient, name: str, encoder: QueryEncoder) -> None:
        """Create the collection and fill it."""
        store = Store.of(client)
        ensure_collection(store, name, encoder.bundle.manifest, {"year": "integer", "tags": "keyword"})
        QdrantSink(store, name).upsert([point_id(key) for key in self.keys], self.vectors, self.payloads)


def small_archive(folder: Path, encoder: QueryEncoder) -> Archive:
    """Write the photographs and encode them."""
    paths = write_archive(folder, PHOTOS)
    for path in paths[:COPIES]:
        shutil.copyfile(path, folder / f"copy-{path.name}")
    paths = sorted(folder.iterdir())
    payloads = []
    for number, path in enumerate(paths):
        payload = {"key": f"s/{path.name}", "source": "s", "uri": file_uri(str(path)), "year": 2000 + number % 4}
        payload |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "tags": ["all", f"tag-{number % 3}"]}
        if number % 4 == 3:
            del payload["tags"]
        payloads.append(payload)
    return Archive(folder, [f"s/{path.name}" for path in paths], encoder.images(paths), payloads)


def query_for(payload_filter: str, value: Any) -> models.Filter:
    """A filter on one value."""
    return models.Filter(must=[models.FieldCondition(key=payload_filter, match=models.MatchValue(value=value))])

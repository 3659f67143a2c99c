"""One collection: an engine shard in a folder, its configuration, and the lock around both."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from qdrant_server.config import Json, engine_config, vectors_by_name
from qdrant_server.errors import engine_errors, no_collection, wrong_input

logger = logging.getLogger(__name__)

# Optimizing stops everything, because the engine keeps the interpreter lock: it waits for a pause in the writing, but not forever.
_PAUSE_S = 1.0
_LONGEST_PUT_OFF_S = 10.0


class Collection:
    """A collection that is open. Every call into the engine happens under its lock."""

    def __init__(self, name: str, folder: Path, config: Json, indexes: Json, shard: edge.EdgeShard) -> None:
        self.name = name
        self.folder = folder
        self.config = config
        self.indexes = indexes
        self._shard: edge.EdgeShard | None = shard
        self._lock = threading.RLock()
        self._operation = 0
        self._changed: float | None = None
        self._maintained = time.monotonic()
        self._reconfigured = False
        self._problem: str | None = None

    @classmethod
    def create(cls, name: str, folder: Path, config: Json) -> Collection:
        """A new, empty one."""
        with engine_errors():
            return cls(name, folder, config, {}, edge.EdgeShard.create(str(folder), engine_config(config)))

    @classmethod
    def load(cls, name: str, folder: Path, config: Json, indexes: Json) -> Collection:
        """One that an earlier process left, whichever way it ended."""
        return cls(name, folder, config, indexes, edge.EdgeShard.load(str(folder), engine_config(config)))

    @contextmanager
    def engine(self) -> Iterator[edge.EdgeShard]:
        """The shard, for this thread alone."""
        with self._lock:
            if self._shard is None:  # deleted since it was looked up
                raise no_collection(self.name)
            with engine_errors():
                yield self._shard

    def apply(self, operations: Sequence[edge.UpdateOperation]) -> int:
        """Apply operations in order; once this returns, they are in the write-ahead log. Returns the operation's number."""
        with self.engine() as shard:
            self._changed = time.monotonic()
            for operation in operations:
                shard.update(operation)
                self._operation += 1
            return self._operation

    def reconfigure(self, config: Json) -> None:
        """Take a new configuration; the engine does so only on loading."""
        with self.engine() as shard:
            if {**config, "metadata": None} != {**self.config, "metadata": None}:
                wanted = engine_config(config)
                shard.close()
                try:
                    self._shard = edge.EdgeShard.load(str(self.folder), wanted)
                except Exception:
                    self._shard = edge.EdgeShard.load(str(self.folder), engine_config(self.config))
                    raise
                self._changed, self._reconfigured = time.monotonic(), True
            self.config = config

    def maintain(self) -> None:
        """Build indexes and flush, if something changed and this is a good moment."""
        with self._lock:
            now = time.monotonic()
            if self._shard is None or self._changed is None:
                return
            if now - self._changed < _PAUSE_S and now - self._maintained < _LONGEST_PUT_OFF_S:
                return
            try:
                self._shard.optimize()
                self._shard.flush()
                self._problem = None
            except Exception as exc:
                logger.exception("collection %s", self.name)
                self._problem = str(exc)
            self._changed, self._reconfigured, self._maintained = None, False, time.monotonic()

    def close(self) -> None:
        """Flush and let go of the files."""
        with self._lock:
            if self._shard is not None:
                self._shard.flush()
                self._shard.close()
            self._shard = None

    def dimension(self, vector_name: str) -> int:
        """How many numbers a vector has.

        Raises:
            ApiError: no vector of this name.
        """
        params = vectors_by_name(self.config["params"]["vectors"]).get(vector_name)
        if params is None:
            raise wrong_input(f"Not existing vector name error: {vector_name}")
        return int(params["size"])

    def info(self) -> Json:
        """What `GET /collections/NAME` answers."""
        with self.engine() as shard:
            found = shard.info()
            return {
                "status": self._status(found),
                "optimizer_status": {"error": self._problem} if self._problem else "ok",
                "indexed_vectors_count": found.indexed_vectors_count,
                "points_count": found.points_count,
                "segments_count": found.segments_count,
                "config": self.config,
                "payload_schema": {field: self._index(field, one) for field, one in found.payload_schema.items()},
                "update_queue": {"length": 0},
            }

    def _status(self, found: edge.ShardInfo) -> str:
        if self._problem:
            return "red"
        threshold = self.config["optimizer_config"]["indexing_threshold"] or float("inf")
        per_point = sum(4 * one["size"] / 1024 for one in vectors_by_name(self.config["params"]["vectors"]).values())
        waiting = (found.points_count - found.indexed_vectors_count) * per_point > threshold
        return "yellow" if self._changed is not None and (waiting or self._reconfigured) else "green"

    def _index(self, field: str, found: edge.PayloadIndexInfo) -> dict[str, Any]:
        schema = self.indexes.get(field)
        answer: dict[str, Any] = {"data_type": str(found.data_type).rpartition(".")[2].lower(), "points": found.points}
        return answer | ({"params": schema} if isinstance(schema, dict) else {})

"""A collection as an evaluation sees it: its points without vectors, and searches, exact or by the index."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.collection import describe
from mcip_qdrant.errors import StoreError
from mcip_qdrant.store import Store

if TYPE_CHECKING:
    from qdrant_client import models

_PAGE: Final = 1000
_VECTORS: Final = 100
_ATTEMPTS: Final = 3
_MARGIN: Final = 10
_GROWTH: Final = 4

SAME_SCORE: Final = 1e-6
"""Scores no further apart than this are one score: the same vector may be rounded differently in two searches."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point: its id, its uri, and the payload fields that were asked for."""

    id: str
    uri: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one search gave, best first: ids, their scores (float64 `[L]`), and the seconds it took, transport included."""

    ids: list[str]
    scores: NDArray[np.float64]
    seconds: float

    def without(self, point: str, length: int) -> Answer:
        """The first `length` without one point: a query that is itself in the collection."""
        keep = [place for place, found in enumerate(self.ids) if found != point][:length]
        return Answer([self.ids[place] for place in keep], self.scores[keep], self.seconds)


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How the index is asked: None leaves a setting to Qdrant."""

    hnsw_ef: int | None = None
    rescore: bool | None = None
    oversampling: float | None = None


@dataclass(frozen=True, slots=True)
class Searches:
    """Searches in one collection."""

    store: Store
    name: str
    settings: SearchSettings

    def info(self) -> models.CollectionInfo:
        """What Qdrant says of the collection.

        Raises:
            StoreError: there is none, or Qdrant failed.
        """
        info = describe(self.store, self.name)
        if info is None:
            raise StoreError(f"Qdrant at {self.store.location} has no collection {self.name!r}")
        return info

    def points(self, fields: Sequence[str], on_points: Callable[[int], object]) -> Iterator[Point]:
        """Every point, with `fields` of its payload."""
        offset: Any = None
        while True:
            start = offset
            records, offset = self.store.call(
                lambda client, start=start: client.scroll(  # type: ignore[misc]
                    self.name, limit=_PAGE, offset=start, with_payload=["uri", *fields], with_vectors=False
                ),
                attempts=_ATTEMPTS,
            )
            for record in records:
                payload = record.payload or {}
                yield Point(str(record.id), str(payload.get("uri", "")), payload)
            on_points(len(records))
            if offset is None:
                return

    def vectors(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Stored vectors of points, in order: float32 `[N, D]`.

        Raises:
            StoreError: a point is gone, or has no vector.
        """
        found: dict[str, Any] = {}
        for start in range(0, len(ids), _VECTORS):
            part = list(ids[start : start + _VECTORS])
            records = self.store.call(
                lambda client, part=part: client.retrieve(self.name, part, with_payload=False, with_vectors=True),  # type: ignore[misc]
                attempts=_ATTEMPTS,
            )
            found.update({str(record.id): record.vector for record in records})
        if missing := next((one for one in ids if not found.get(one)), None):
            raise StoreError(
                f"point {missing} of collection {self.name!r} went away, or has no vector; is it being written?"
            )
        return np.array([found[one] for one in ids], dtype=np.float32)

    def nearest(self, vector: NDArray[np.float32], length: int, *, left_out: str = "") -> Answer:
        """The `length` nearest points by exact search, and all others that are as similar as the last of them.

        Without the others, which copy of a picture is among the nearest would be chance. The seconds are those of the first
        search, for `asked_first(length)` points.

        Args:
            vector: float32 `[D]`, L2 norm 1.
            left_out: id of a point that is no answer: the query itself.
        """
        limit = asked_first(length)
        extra = 1 if left_out else 0
        first = found = self.search(vector, limit + extra, exact=True)
        while True:
            answer = found.without(left_out, limit)
            complete = len(found.ids) < limit + extra
            if complete or answer.scores[-1] < answer.scores[length - 1] - SAME_SCORE:
                return replace(answer, seconds=first.seconds)
            limit *= _GROWTH
            found = self.search(vector, limit + extra, exact=True)

    def search(self, vector: NDArray[np.float32], limit: int, *, exact: bool) -> Answer:
        """The `limit` nearest points, by comparing every vector in full precision, or as the index finds them.

        Args:
            vector: float32 `[D]`, L2 norm 1.
        """
        # Embedded mode compares every vector anyway, and warns about settings that it does not have.
        params = None if self.store.embedded else self._exact() if exact else self._by_index()
        query = vector.tolist()
        start = time.perf_counter()
        answer = self.store.call(
            lambda client: client.query_points(
                self.name, query=query, limit=limit, search_params=params, with_payload=False
            ),
            attempts=_ATTEMPTS,
        )
        seconds = time.perf_counter() - start
        scores = np.array([point.score for point in answer.points], dtype=np.float64)
        return Answer([str(point.id) for point in answer.points], scores, seconds)

    def _exact(self) -> models.SearchParams:
        from qdrant_client import models

        return models.SearchParams(exact=True, quantization=models.QuantizationSearchParams(ignore=True))

    def _by_index(self) -> models.SearchParams:
        from qdrant_client import models

        chosen = self.settings
        quantization = None
        if chosen.rescore is not None or chosen.oversampling is not None:
            quantization = models.QuantizationSearchParams(rescore=chosen.rescore, oversampling=chosen.oversampling)
        return models.SearchParams(hnsw_ef=chosen.hnsw_ef, quantization=quantization)


def asked_first(length: int) -> int:
    """How many points `Searches.nearest` asks for at first: a few more than wanted, which shows where equal scores end."""
    return length + _MARGIN


def describe_index(info: models.CollectionInfo, settings: SearchSettings) -> str:
    """The settings that decide what a search may miss, in a line."""
    hnsw = info.config.hnsw_config
    parts = [f"HNSW m={hnsw.m} ef_construct={hnsw.ef_construct}, hnsw_ef={settings.hnsw_ef or 'default'}"]
    quantization = info.config.quantization_config
    if quantization is None:
        parts.append("no quantization")
    else:
        said = quantization.model_dump(mode="json", exclude_none=True)
        kind, options = next(iter(said.items()))
        parts.append(f"{kind} quantization ({', '.join(f'{key}={value}' for key, value in options.items())})")
        parts.append(f"rescore={_said(settings.rescore)} oversampling={_said(settings.oversampling)}")
    return ", ".join(parts)


def _said(value: object) -> str:
    return "default" if value is None else str(value)

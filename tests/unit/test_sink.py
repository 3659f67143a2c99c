"""Writing points: each operation does what it says and may be repeated. Both kinds of local mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient
from unit_support import manifest

from mcip_qdrant.collection import ensure_collection
from mcip_qdrant.errors import StoreError
from mcip_qdrant.keys import point_id
from mcip_qdrant.sink import QdrantSink
from mcip_qdrant.store import Store, open_store


@pytest.fixture(params=["memory", "folder"])
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QdrantSink]:
    store = Store.of(QdrantClient(":memory:")) if request.param == "memory" else open_store(str(tmp_path / "q"))
    ensure_collection(store, "images", manifest(), {})
    yield QdrantSink(store, "images")
    store.close()


def ids(count: int, prefix: str = "s") -> list[str]:
    return [point_id(f"{prefix}/{number}") for number in range(count)]


def vectors_of(sink: QdrantSink, points: list[str]) -> list[Any]:
    records = sink.store.call(lambda client: client.retrieve("images", points, with_vectors=True))
    by_id = {record.id: record.vector for record in records}
    return [by_id[point] for point in points]


def test_upsert_and_known(sink: QdrantSink) -> None:
    points = ids(3)
    vectors = np.eye(3, dtype=np.float32)
    payloads: list[dict[str, Any]] = [{"source": "s", "n": number, "deep": {"ä": [1, None]}} for number in range(3)]
    sink.upsert(points, vectors, payloads)
    assert sink.count() == 3
    assert sink.known([*points, point_id("s/unknown")]) == dict(zip(points, payloads, strict=True))
    assert sink.known([points[1]]) == {points[1]: payloads[1]}
    assert sink.known([]) == {}
    assert vectors_of(sink, points) == vectors.tolist()


def test_upsert_replaces_the_whole_point(sink: QdrantSink) -> None:
    points = ids(1)
    sink.upsert(points, np.eye(3, dtype=np.float32)[:1], [{"a": 1, "b": 2}])
    sink.upsert(points, np.eye(3, dtype=np.float32)[1:2], [{"a": 3}])
    assert sink.known(points) == {points[0]: {"a": 3}}
    assert vectors_of(sink, points) == [[0, 1, 0]]
    assert sink.count() == 1


def test_update_payloads_leaves_the_rest(sink: QdrantSink) -> None:
    points = ids(3)
    sink.upsert(points, np.eye(3, dtype=np.float32), [{"a": 1, "b": 2}] * 3)
    changes: dict[str, dict[str, Any]] = {points[0]: {"a": 10}, points[2]: {"c": "new"}}
    for _ in range(2):
        sink.update_payloads(changes)
        assert sink.known(points) == {
            points[0]: {"a": 10, "b": 2},
            points[1]: {"a": 1, "b": 2},
            points[2]: {"a": 1, "b": 2, "c": "new"},
        }
    assert vectors_of(sink, points) == np.eye(3).tolist()
    sink.update_payloads({})
    assert sink.count() == 3


def test_delete_in_batches(sink: QdrantSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcip_qdrant.sink._DELETE_BATCH", 10)
    points = ids(33)
    sink.upsert(points, np.ones((33, 3), np.float32), [{"source": "s"}] * 33)
    sink.delete(iter(points[1:]))
    assert set(sink.known(points)) == {points[0]}
    sink.delete(points[1:3])
    sink.delete([])
    assert sink.count() == 1


def test_every_point_of_a_source_over_many_pages(sink: QdrantSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcip_qdrant.sink._SCROLL_PAGE", 10)
    mine, others = ids(41), ids(5, "t")
    sink.upsert(mine, np.ones((41, 3), np.float32), [{"source": "s", "key": f"s/{number}"} for number in range(41)])
    sink.upsert(others, np.ones((5, 3), np.float32), [{"source": "t"}] * 5)
    found = list(sink.ids_of_source("s"))
    assert len(found) == 41
    assert dict(found) == {point: f"s/{number}" for number, point in enumerate(mine)}
    # A point without a key is named by its id.
    assert dict(sink.ids_of_source("t")) == {point: point for point in others}
    assert list(sink.ids_of_source("none")) == []


def test_a_wrong_size_or_a_missing_collection_is_a_store_error(sink: QdrantSink) -> None:
    with pytest.raises(StoreError):
        sink.upsert(ids(1), np.ones((1, 4), np.float32), [{}])
    missing = QdrantSink(sink.store, "none")
    for action in (
        lambda: missing.upsert(ids(1), np.ones((1, 3), np.float32), [{}]),
        lambda: missing.known(ids(1)),
        lambda: list(missing.ids_of_source("s")),
        lambda: missing.delete(ids(1)),
        lambda: missing.update_payloads({ids(1)[0]: {"a": 1}}),
        missing.count,
    ):
        with pytest.raises(StoreError, match="not found"):
            action()
    assert sink.count() == 0


def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    location = str(tmp_path / "q")
    first = open_store(location)
    ensure_collection(first, "images", manifest(), {})
    QdrantSink(first, "images").upsert(ids(2), np.eye(3, dtype=np.float32)[:2], [{"n": 1}, {"n": 2}])
    QdrantSink(first, "images").update_payloads({ids(2)[0]: {"n": 5}})
    QdrantSink(first, "images").delete(ids(2)[1:])
    first.close()
    second = open_store(location)
    assert QdrantSink(second, "images").known(ids(2)) == {ids(2)[0]: {"n": 5}}
    second.close()

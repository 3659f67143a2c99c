"""The guarded sink: a collection that was replaced under a running worker gets nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from unit_support import SPACE_B, manifest

from mcip_qdrant.collection import METADATA_KEY, ensure_collection
from mcip_qdrant.errors import ForeignCollectionError, McipError, SpaceMismatchError, StoreError
from mcip_qdrant.keys import point_id
from mcip_qdrant.sink import QdrantSink
from mcip_qdrant.store import Store, open_store
from mcip_qdrant.workers.guard import GuardedSink

IDS = [point_id("s/a"), point_id("s/b")]
VECTORS = np.eye(3, dtype=np.float32)[:2]


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = Store.of(QdrantClient(":memory:")) if request.param == "memory" else open_store(str(tmp_path / "q"))
    ensure_collection(opened, "images", manifest(), {})
    yield opened
    opened.close()


def write(sink: GuardedSink) -> None:
    sink.upsert(IDS, VECTORS, [{"n": 1}, {"n": 2}])


def test_it_writes_like_any_sink(store: Store) -> None:
    sink = GuardedSink(QdrantSink(store, "images", 1), manifest())
    assert sink.known(IDS) == {}
    write(sink)
    sink.update_payloads({IDS[0]: {"tag": "ä"}})
    sink.update_payloads({})
    assert sink.known(IDS) == {IDS[0]: {"n": 1, "tag": "ä"}, IDS[1]: {"n": 2}}


def of_another_model(store: Store) -> None:
    ensure_collection(store, "images", manifest(model="Tiny-B", space_id=SPACE_B), {})


def of_somebody_else(store: Store) -> None:
    vectors = models.VectorParams(size=3, distance=models.Distance.COSINE)
    store.call(lambda client: client.create_collection("images", vectors_config=vectors))


def of_another_size(store: Store) -> None:
    vectors = models.VectorParams(size=4, distance=models.Distance.COSINE)
    identity = {"space_id": manifest().space_id, "model": "Tiny-A", "embedding_dim": 4, "format": 1}
    store.call(
        lambda client: client.create_collection("images", vectors_config=vectors, metadata={METADATA_KEY: identity})
    )


def nothing(_store: Store) -> None:
    pass


@pytest.mark.parametrize(
    ("other", "error"),
    [
        (of_another_model, SpaceMismatchError),
        (of_somebody_else, ForeignCollectionError),
        (of_another_size, SpaceMismatchError),
        (nothing, StoreError),
    ],
)
def test_a_collection_that_was_replaced(store: Store, other: Callable[[Store], None], error: type[McipError]) -> None:
    sink = GuardedSink(QdrantSink(store, "images", 1), manifest())
    write(sink)
    store.call(lambda client: client.delete_collection("images"))
    other(store)
    with pytest.raises(error):
        write(sink)
    with pytest.raises(error):
        sink.update_payloads({IDS[0]: {"tag": "x"}})
    sink.update_payloads({})  # nothing to write: no question either
    if other is not nothing:
        assert sink.known(IDS) == {}


def test_points_of_another_model_are_not_taken_for_known(store: Store) -> None:
    sink = GuardedSink(QdrantSink(store, "images", 1), manifest())
    store.call(lambda client: client.delete_collection("images"))
    of_another_model(store)
    QdrantSink(store, "images").upsert(IDS, VECTORS, [{"n": 1}, {"n": 2}])
    with pytest.raises(SpaceMismatchError):
        sink.known(IDS)


def test_an_alias_that_moves_leads_no_chunk_astray(store: Store) -> None:
    ensure_collection(store, "other", manifest(model="Tiny-B", space_id=SPACE_B), {})

    def point_to(name: str) -> None:
        of = models.CreateAlias(collection_name=name, alias_name="now")
        store.call(lambda client: client.update_collection_aliases([models.CreateAliasOperation(create_alias=of)]))

    point_to("images")
    sink = GuardedSink.of(store, "now", manifest(), attempts=1)
    point_to("other")
    write(sink)
    assert sink.known(IDS).keys() == set(IDS)
    assert QdrantSink(store, "images").count() == 2
    assert QdrantSink(store, "other").count() == 0
    with pytest.raises(SpaceMismatchError):
        write(GuardedSink.of(store, "now", manifest(), attempts=1))

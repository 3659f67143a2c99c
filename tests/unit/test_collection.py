"""A collection belongs to one model; its sources belong to one folder each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from unit_support import SPACE_A, SPACE_B, manifest

from mcip_qdrant import collection
from mcip_qdrant.collection import METADATA_KEY, check_space, claim, describe, ensure_collection, register_source
from mcip_qdrant.errors import ForeignCollectionError, SourceError, SpaceMismatchError, StoreError
from mcip_qdrant.keys import point_id
from mcip_qdrant.sink import QdrantSink
from mcip_qdrant.store import Store, open_store

A = manifest()
B = manifest(model="Tiny-B", space_id=SPACE_B)
COSINE = models.VectorParams(size=3, distance=models.Distance.COSINE)


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store = Store.of(QdrantClient(":memory:")) if request.param == "memory" else open_store(str(tmp_path / "q"))
    yield store
    store.close()


def metadata(store: Store, name: str = "images") -> dict[str, Any]:
    info = describe(store, name)
    assert info is not None
    return dict(info.config.metadata or {})


def make(store: Store, vectors: Any = COSINE, **options: Any) -> None:
    store.call(lambda client: client.create_collection("images", vectors_config=vectors, **options))


def alias(store: Store, name: str, target: str) -> None:
    create = models.CreateAlias(collection_name=target, alias_name=name)
    store.call(lambda client: client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)]))


IDENTITY_A = {METADATA_KEY: {"space_id": SPACE_A, "model": "Tiny-A", "embedding_dim": 3, "format": 1}}


def test_created_once_with_its_model(store: Store) -> None:
    assert describe(store, "images") is None
    assert ensure_collection(store, "images", A, {"tag": "keyword"}) is True
    assert metadata(store) == IDENTITY_A == {"mcip_qdrant": IDENTITY_A[METADATA_KEY]}
    info = describe(store, "images")
    assert info is not None
    vectors = info.config.params.vectors
    assert isinstance(vectors, models.VectorParams)
    assert (vectors.size, vectors.distance) == (3, models.Distance.COSINE)
    QdrantSink(store, "images").upsert([point_id("s/a")], np.eye(3, dtype=np.float32)[:1], [{}])
    assert ensure_collection(store, "images", A, {"tag": "keyword"}) is False
    assert metadata(store) == IDENTITY_A
    assert QdrantSink(store, "images").count() == 1


def test_the_model_is_remembered_on_disk(tmp_path: Path) -> None:
    for created in (True, False):
        store = open_store(str(tmp_path / "q"))
        assert ensure_collection(store, "images", A, {}) is created
        register_source(store, "images", "s", Path("/data"))
        assert metadata(store) == {**IDENTITY_A, "mcip_qdrant_source:s": {"root": "/data"}}
        store.close()


def test_another_model_of_the_same_size_is_refused_by_name(store: Store) -> None:
    ensure_collection(store, "images", A, {})
    for action in (lambda: ensure_collection(store, "images", B, {}), lambda: check_space(store, "images", B)):
        with pytest.raises(SpaceMismatchError) as caught:
            action()
        for word in ("'images'", "Tiny-A", "Tiny-B", SPACE_A[:12], SPACE_B[:12]):
            assert word in str(caught.value)
        assert caught.value.exit_code == 4
    assert metadata(store) == IDENTITY_A


def test_the_same_model_under_another_name_is_the_same_model(store: Store) -> None:
    ensure_collection(store, "images", A, {})
    assert ensure_collection(store, "images", manifest(model="renamed"), {}) is False


def test_a_later_format_is_refused(store: Store) -> None:
    make(store, metadata={METADATA_KEY: {**IDENTITY_A[METADATA_KEY], "format": 2}})
    with pytest.raises(SpaceMismatchError, match="format 2"):
        check_space(store, "images", A)


def test_metadata_that_lies_about_the_size_is_refused(store: Store) -> None:
    make(store, models.VectorParams(size=4, distance=models.Distance.COSINE), metadata=IDENTITY_A)
    with pytest.raises(SpaceMismatchError, match="size 4"):
        check_space(store, "images", A)


def test_no_collection(store: Store) -> None:
    with pytest.raises(StoreError, match=r"no collection 'images'.*mcip-qdrant ingest"):
        check_space(store, "images", A)
    with pytest.raises(StoreError, match="no collection 'images' to adopt"):
        claim(store, "images", A)
    with pytest.raises(StoreError):
        register_source(store, "images", "s", Path("/data"))
    assert describe(store, "images") is None


def test_a_foreign_collection_is_offered_for_adoption(store: Store) -> None:
    make(store, metadata={"owner": "somebody"})
    for action in (lambda: check_space(store, "images", A), lambda: ensure_collection(store, "images", A, {})):
        with pytest.raises(
            ForeignCollectionError, match=r"size \(3\).*mcip-qdrant adopt .*--collection images"
        ) as caught:
            action()
        assert "Tiny-A" in str(caught.value)
    assert metadata(store) == {"owner": "somebody"}
    claim(store, "images", A)
    assert metadata(store) == {"owner": "somebody", **IDENTITY_A}
    check_space(store, "images", A)
    claim(store, "images", A)
    with pytest.raises(SpaceMismatchError, match="Tiny-A"):
        claim(store, "images", B)
    assert metadata(store) == {"owner": "somebody", **IDENTITY_A}


UNFIT: dict[str, tuple[Any, str]] = {
    "size": (models.VectorParams(size=4, distance=models.Distance.COSINE), "size 4.*size 3"),
    "distance": (models.VectorParams(size=3, distance=models.Distance.DOT), "Dot vectors"),
    "named": ({"image": COSINE, "text": COSINE}, r"named vectors \(image, text\)"),
    "sparse only": ({}, "no dense vector"),
}


@pytest.mark.parametrize(("vectors", "words"), UNFIT.values(), ids=UNFIT)
def test_a_foreign_collection_that_cannot_fit_is_not_offered(store: Store, vectors: Any, words: str) -> None:
    make(store, vectors, sparse_vectors_config={"words": models.SparseVectorParams()})
    for action in (check_space, claim, lambda *these: ensure_collection(*these, {})):
        with pytest.raises(SpaceMismatchError, match=words) as caught:
            action(store, "images", A)
        assert "adopt" not in str(caught.value)
    assert metadata(store) == {}


def test_a_foreign_collection_without_metadata_can_be_adopted(store: Store) -> None:
    make(store)
    claim(store, "images", A)
    assert metadata(store) == IDENTITY_A


@pytest.mark.parametrize("value", ["text", 5, []])
def test_metadata_of_another_shape_vouches_for_nothing(store: Store, value: Any) -> None:
    make(store, metadata={METADATA_KEY: value})
    for action in (check_space, claim):
        with pytest.raises(ForeignCollectionError):
            action(store, "images", A)
    assert metadata(store) == {METADATA_KEY: value}


def test_another_process_may_create_it_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, metadata=IDENTITY_A)
    answers = iter([None])
    monkeypatch.setattr(collection, "describe", lambda *these, **options: next(answers, describe(*these, **options)))
    assert ensure_collection(store, "images", A, {}) is False
    answers = iter([None])
    with pytest.raises(SpaceMismatchError):
        ensure_collection(store, "images", B, {})


def test_through_an_alias(store: Store) -> None:
    ensure_collection(store, "images-2025", A, {})
    alias(store, "images", "images-2025")
    check_space(store, "images", A)
    assert ensure_collection(store, "images", A, {}) is False
    with pytest.raises(SpaceMismatchError):
        check_space(store, "images", B)
    register_source(store, "images", "s", Path("/data"))
    assert metadata(store, "images-2025") == {**IDENTITY_A, "mcip_qdrant_source:s": {"root": "/data"}}
    QdrantSink(store, "images").upsert([point_id("s/a")], np.eye(3, dtype=np.float32)[:1], [{}])
    assert QdrantSink(store, "images-2025").count() == 1


def test_sources(store: Store) -> None:
    make(store, metadata={**IDENTITY_A, "owner": {"name": "somebody"}})
    register_source(store, "images", "s", Path("/data/photos"))
    register_source(store, "images", "t", Path("/data/photos"))
    expected = {
        **IDENTITY_A,
        "owner": {"name": "somebody"},
        "mcip_qdrant_source:s": {"root": "/data/photos"},
        "mcip_qdrant_source:t": {"root": "/data/photos"},
    }
    assert metadata(store) == expected
    register_source(store, "images", "s", Path("/data/photos"))
    assert metadata(store) == expected
    with pytest.raises(SourceError, match=r"'s'.*'images'.*/data/photos, not /mnt/new.*--moved.*--source NAME"):
        register_source(store, "images", "s", Path("/mnt/new"))
    assert metadata(store) == expected
    register_source(store, "images", "s", Path("/mnt/new"), moved=True)
    expected["mcip_qdrant_source:s"] = {"root": "/mnt/new"}
    assert metadata(store) == expected
    with pytest.raises(SourceError, match="/mnt/new, not /data/photos"):
        register_source(store, "images", "s", Path("/data/photos"))
    register_source(store, "images", "u", Path("/x"), moved=True)
    assert metadata(store) == {**expected, "mcip_qdrant_source:u": {"root": "/x"}}


def test_a_root_with_an_odd_name(store: Store) -> None:
    ensure_collection(store, "images", A, {})
    root = Path("/data/caf\udce9 100%")
    register_source(store, "images", "s%25", root)
    register_source(store, "images", "s%25", root)
    assert metadata(store)["mcip_qdrant_source:s%25"] == {"root": "/data/caf%E9 100%25"}

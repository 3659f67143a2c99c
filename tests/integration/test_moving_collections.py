"""What happens to a running `ImageCollection` while somebody moves aliases, deletes collections, and Qdrant goes and comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from archives import Archive, small_archive
from conftest import Exported
from fault_proxy import FaultProxy
from qdrant_client import QdrantClient, models
from services import QdrantService, free_port, qdrant_server

from mcip_qdrant import (
    ClosedError,
    ForeignCollectionError,
    ImageCollection,
    QueryEncoder,
    SpaceMismatchError,
    StoreError,
    StoreUnavailableError,
    space_guard,
)
from mcip_qdrant.collection import ensure_collection
from mcip_qdrant.store import Store


@pytest.fixture(scope="module")
def encoder(clip: Exported) -> Iterator[QueryEncoder]:
    with QueryEncoder.open(clip.folder, device="cpu") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, encoder: QueryEncoder) -> Archive:
    return small_archive(tmp_path_factory.mktemp("s"), encoder)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[QdrantService]:
    with qdrant_server(tmp_path / "qdrant") as running:
        yield running


@pytest.fixture
def client(service: QdrantService) -> Iterator[QdrantClient]:
    client = connected(service.url)
    yield client
    client.close()


def connected(url: str, **options: Any) -> QdrantClient:
    return QdrantClient(url=url, check_compatibility=False, **{"timeout": 20, **options})


def switch(client: QdrantClient, target: str, alias: str = "images") -> None:
    """As docs/deploying.md does it: removal and creation in one call."""
    steps: list[Any] = [
        models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
        models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=target, alias_name=alias)),
    ]
    client.update_collection_aliases(steps)


def eventually(action: Any, kind: type[Exception]) -> Exception:
    """The error that `action` ends with once the two seconds are over; nothing else may come before."""
    deadline = time.monotonic() + 10 * space_guard.RECHECK_S
    while time.monotonic() < deadline:
        try:
            action()
        except kind as exc:
            return exc
        time.sleep(0.1)
    raise AssertionError(f"no {kind.__name__}")


def test_an_alias_moves_to_another_model_and_back(
    client: QdrantClient,
    archive: Archive,
    encoder: QueryEncoder,
    other_clip: Exported,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(space_guard, "RECHECK_S", 0.5)
    archive.load(client, "images-1", encoder)
    with QueryEncoder.open(other_clip.folder, device="cpu") as other:
        ensure_collection(Store.of(client), "images-2", other.bundle.manifest, {})
    switch(client, "images-1")
    images = ImageCollection(client, "images", encoder)
    first = found(images)
    switch(client, "images-2")
    # Until it is noticed, the answers are the old collection's: never the new vectors with the old model.
    refused = eventually(lambda: _same(images, first), SpaceMismatchError)
    assert "holds vectors of other-clip" in str(refused)
    assert "the bundle is tiny-clip" in str(refused)
    switch(client, "images-1")
    assert found(images) == first


def _same(images: ImageCollection, expected: list[str]) -> None:
    assert found(images) == expected


def found(images: ImageCollection) -> list[str]:
    """An answer, by digest: which of two copies Qdrant names first is its own affair."""
    return [hit.payload["sha256"] for hit in images.search(text="a wall")]


def test_a_switch_under_load_never_fails_a_search(
    client: QdrantClient, archive: Archive, encoder: QueryEncoder
) -> None:
    """The same model twice; the old collection is deleted as soon as the alias has moved."""
    for name in ("images-1", "images-2"):
        archive.load(client, name, encoder)
    switch(client, "images-1")
    images = ImageCollection(client, "images", encoder)
    begun, switched = threading.Barrier(5), threading.Event()

    def search(number: int) -> None:
        begun.wait(30)
        after = 0
        while after < 5:
            after += switched.is_set()
            assert len(images.search(text=f"query {number}", limit=3)) == 3

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(search, number) for number in range(4)]
        begun.wait(30)
        switch(client, "images-2")
        client.delete_collection("images-1")
        switched.set()
        for one in running:
            one.result()
    assert images._guard.collection() == "images-2"


def test_a_collection_is_deleted_and_filled_anew(
    client: QdrantClient, archive: Archive, encoder: QueryEncoder, other_clip: Exported
) -> None:
    archive.load(client, "images", encoder)
    images = ImageCollection(client, "images", encoder)
    assert images.count() == len(archive.keys)
    client.delete_collection("images")
    for use in (lambda: images.search(text="a"), lambda: images.search(like="s/photo-0001.jpg"), images.count):
        with pytest.raises(StoreError, match="no collection 'images'.*mcip-qdrant ingest"):
            use()
    archive.load(client, "images", encoder)
    assert images.search(text="a")
    client.delete_collection("images")
    with QueryEncoder.open(other_clip.folder, device="cpu") as other:
        ensure_collection(Store.of(client), "images", other.bundle.manifest, {})
    eventually(lambda: images.search(text="a"), SpaceMismatchError)
    client.delete_collection("images")
    client.create_collection("images", vectors_config=models.VectorParams(size=32, distance=models.Distance.COSINE))
    eventually(lambda: images.search(text="a"), ForeignCollectionError)


def test_qdrant_is_down_at_the_start_and_in_between(archive: Archive, encoder: QueryEncoder, tmp_path: Path) -> None:
    port = free_port()
    client = connected(f"http://127.0.0.1:{port}")
    images = ImageCollection(client, "images", encoder)  # asks nothing yet
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        images.search(text="a wall")
    with qdrant_server(tmp_path / "qdrant", port=port) as service:
        archive.load(client, "images", encoder)
        first = found(images)
        service.kill()
        for use in (lambda: images.search(text="a wall"), images.count, lambda: images.facets("year")):
            with pytest.raises(StoreUnavailableError, match=f"127.0.0.1:{port}"):
                use()
        service.start()
        assert found(images) == first
    client.close()


def test_reads_are_tried_twice(service: QdrantService, archive: Archive, encoder: QueryEncoder) -> None:
    with FaultProxy(service.url) as proxy:
        client = connected(proxy.url)
        archive.load(client, "images", encoder)
        images = ImageCollection(client, "images", encoder)
        images.count()
        for mode in ("503", "429", "cut", "refuse"):
            before = proxy.counts
            proxy.fail_next(1, mode)  # type: ignore[arg-type]
            assert len(images.search(text="a wall", limit=2)) == 2
            assert (proxy.counts - before)[mode] == 1
        for use in (
            lambda: images.search(text="a wall"),
            lambda: images.search_many([{"text": "a"}, {"text": "b"}]),
            lambda: images.search(text="a", group_by="year"),
            lambda: images.search(like="s/photo-0001.jpg"),
            images.count,
            lambda: images.facets("year"),
        ):
            images.count()  # the guard has just checked
            before = proxy.counts
            proxy.mode = "503"
            with pytest.raises(StoreUnavailableError, match="HTTP 503"):
                use()
            proxy.mode = "pass"
            assert (proxy.counts - before)["503"] == 2  # one retry, not more
        client.close()


def test_a_slow_qdrant_is_waited_for_as_long_as_was_said(
    service: QdrantService, archive: Archive, encoder: QueryEncoder
) -> None:
    with FaultProxy(service.url, delay=3) as proxy:
        client = connected(proxy.url)
        archive.load(client, "images", encoder)
        images = ImageCollection(client, "images", encoder, timeout_s=1)
        images.count()
        proxy.fail_next(2, "slow")
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="timed out"):
            images.search(text="a wall")
        assert 1.9 < time.monotonic() - started < 8
        client.close()


def test_a_closed_client_and_a_closed_encoder(service: QdrantService, archive: Archive, clip: Exported) -> None:
    client = connected(service.url)
    encoder = QueryEncoder.open(clip.folder, device="cpu")
    archive.load(client, "images", encoder)
    images = ImageCollection(client, "images", encoder)
    images.search(text="a")
    encoder.close()
    with pytest.raises(ClosedError):
        images.search(text="a")
    assert images.search(like="s/photo-0001.jpg")  # needs no encoder
    client.close()
    for use in (lambda: images.search(like="s/photo-0001.jpg"), images.count):
        with pytest.raises(StoreError, match="closed") as caught:
            use()
        assert not isinstance(caught.value, StoreUnavailableError)
    memory = QdrantClient(":memory:")
    local = ImageCollection(memory, "images", encoder)
    memory.close()
    with pytest.raises(StoreError, match="closed"):
        local.count()

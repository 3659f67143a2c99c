"""Reads reach this model's collection or none, while aliases move and collections come and go. In local mode; for HTTP see integration."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException
from unit_support import SPACE_B, manifest

from mcip_qdrant import space_guard
from mcip_qdrant.collection import ensure_collection
from mcip_qdrant.errors import (
    ConfigurationError,
    ForeignCollectionError,
    SpaceMismatchError,
    StoreError,
    StoreUnavailableError,
)
from mcip_qdrant.space_guard import SpaceGuard
from mcip_qdrant.store import Store

A = manifest()
B = manifest(model="Tiny-B", space_id=SPACE_B)


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.of(QdrantClient(":memory:"))
    yield store
    store.close()


@pytest.fixture
def calls(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the client's methods that were called, in order."""
    made: list[str] = []
    for name in ("get_aliases", "get_collection", "count"):
        method = getattr(store.client, name)

        def counted(*args: Any, _name: str = name, _method: Any = method, **options: Any) -> Any:
            made.append(_name)
            return _method(*args, **options)

        monkeypatch.setattr(store.client, name, counted)
    return made


def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks hold for no time at all, as after two seconds."""
    monkeypatch.setattr(space_guard, "RECHECK_S", -1.0)


def make(store: Store, name: str, of: Any = A) -> None:
    ensure_collection(store, name, of, {})


def point_alias(store: Store, name: str, target: str) -> None:
    create = models.CreateAlias(collection_name=target, alias_name=name)
    store.client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])


def asked(guard: SpaceGuard) -> str:
    """The collection that a read goes to."""
    return guard.read(lambda client, name: client.count(name) and name)


def test_checked_once_and_then_from_memory(store: Store, calls: list[str]) -> None:
    make(store, "images")
    calls.clear()
    guard = SpaceGuard(store, "images", A)
    assert calls == []  # nothing before the first read
    for _ in range(5):
        assert asked(guard) == "images"
    assert calls == ["get_aliases", "get_collection", *["count"] * 5]


def test_checked_again_when_the_time_is_over(store: Store, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, "images")
    guard = SpaceGuard(store, "images", A)
    at_once(monkeypatch)
    calls.clear()
    asked(guard)
    asked(guard)
    assert calls == ["get_aliases", "get_collection", "count"] * 2


def test_an_alias_is_pinned_until_it_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, "images-1")
    make(store, "images-2")
    point_alias(store, "images", "images-1")
    guard = SpaceGuard(store, "images", A)
    assert asked(guard) == "images-1"
    point_alias(store, "images", "images-2")
    assert asked(guard) == "images-1"  # consistent for two seconds, and never mixed
    at_once(monkeypatch)
    assert asked(guard) == "images-2"


def test_an_alias_that_moves_to_another_model_is_refused_by_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, "images-a")
    make(store, "images-b", B)
    point_alias(store, "images", "images-a")
    guard = SpaceGuard(store, "images", A)
    asked(guard)
    point_alias(store, "images", "images-b")
    assert asked(guard) == "images-a"
    at_once(monkeypatch)
    for _ in range(2):
        with pytest.raises(
            SpaceMismatchError, match=r"'images-b' holds vectors of Tiny-B.*bundle is Tiny-A.*Use the bundle"
        ):
            asked(guard)
    point_alias(store, "images", "images-a")
    assert asked(guard) == "images-a"  # and back, without a restart


def test_the_old_collection_is_deleted_after_the_switch(store: Store) -> None:
    """Within the two seconds: the read is refused, so the alias is read again at once."""
    make(store, "images-1")
    make(store, "images-2")
    point_alias(store, "images", "images-1")
    guard = SpaceGuard(store, "images", A)
    asked(guard)
    point_alias(store, "images", "images-2")
    store.client.delete_collection("images-1")
    assert asked(guard) == "images-2"


def test_a_collection_that_is_deleted_and_comes_back(store: Store) -> None:
    make(store, "images")
    guard = SpaceGuard(store, "images", A)
    asked(guard)
    store.client.delete_collection("images")
    for _ in range(2):
        with pytest.raises(StoreError, match="no collection 'images'"):
            asked(guard)
    make(store, "images")
    assert asked(guard) == "images"


def test_a_collection_that_comes_back_as_another_models(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, "images")
    guard = SpaceGuard(store, "images", A)
    asked(guard)
    store.client.delete_collection("images")
    with pytest.raises(StoreError):
        asked(guard)
    make(store, "images", B)
    with pytest.raises(SpaceMismatchError):  # the refusal above made the check void
        asked(guard)
    store.client.delete_collection("images")
    store.client.create_collection(
        "images", vectors_config=models.VectorParams(size=3, distance=models.Distance.COSINE)
    )
    with pytest.raises(ForeignCollectionError, match="adopt"):
        asked(guard)


def test_exchanged_between_two_reads_it_is_noticed_when_the_time_is_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, "images")
    guard = SpaceGuard(store, "images", A)
    asked(guard)
    store.client.delete_collection("images")
    make(store, "images", B)
    at_once(monkeypatch)
    with pytest.raises(SpaceMismatchError):
        asked(guard)


def test_another_dimension_is_noticed_at_the_first_refusal(store: Store) -> None:
    make(store, "images")
    guard = SpaceGuard(store, "images", A)
    asked(guard)
    store.client.delete_collection("images")
    make(store, "images", manifest(dim=5, model="Tiny-C", space_id="c" * 64))
    with pytest.raises(SpaceMismatchError, match="Tiny-C"):
        guard.read(lambda client, name: client.query_points(name, query=[1.0, 0.0, 0.0]))


def test_a_refusal_that_has_nothing_to_do_with_it_is_told_as_it_is(store: Store, calls: list[str]) -> None:
    make(store, "images")
    guard = SpaceGuard(store, "images", A)
    attempts = []

    def refused(_client: QdrantClient, name: str) -> None:
        attempts.append(name)
        raise ValueError("wrong vector size")

    with pytest.raises(StoreError, match="wrong vector size"):
        guard.read(refused)
    assert attempts == ["images"]  # the check passed, so asking again would not help


def test_a_key_that_may_not_list_aliases(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(**_: Any) -> None:
        raise ConfigurationError("HTTP 403")

    make(store, "images-1")
    point_alias(store, "images", "images-1")
    monkeypatch.setattr(store.client, "get_aliases", forbidden)
    assert asked(SpaceGuard(store, "images", A)) == "images"
    with pytest.raises(SpaceMismatchError):
        asked(SpaceGuard(store, "images", B))


def test_many_threads_share_one_check(store: Store, calls: list[str]) -> None:
    make(store, "images")
    calls.clear()
    guard = SpaceGuard(store, "images", A)
    threads = [threading.Thread(target=asked, args=(guard,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls.count("get_collection") == 1
    assert calls.count("count") == 20


def test_threads_that_wait_for_one_check_share_its_failure(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check of a Qdrant that hangs costs its timeout; eight threads must not pay that eight times in turn."""
    make(store, "images")
    guard = SpaceGuard(store, "images", A)
    tried, waiting = [], threading.Barrier(8)
    answer = store.client.get_aliases

    def hanging() -> Any:
        tried.append(1)
        time.sleep(0.3)
        raise ResponseHandlingException(OSError("timed out"))

    def ask() -> type[BaseException] | None:
        waiting.wait(10)
        try:
            asked(guard)
        except StoreUnavailableError as exc:
            return type(exc)
        return None

    monkeypatch.setattr(store.client, "get_aliases", hanging)
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda _: ask(), range(8)))
    assert outcomes == [StoreUnavailableError] * 8
    assert len(tried) == space_guard.READ_ATTEMPTS
    monkeypatch.setattr(store.client, "get_aliases", answer)
    assert asked(guard) == "images", "who asks later is answered at once"

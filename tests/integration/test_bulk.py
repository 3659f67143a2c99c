"""`ingest --bulk`: HNSW is deferred during a load and back afterwards, whatever happened in between."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import finish, run, start
from conftest import Exported
from photos import write_archive
from qdrant_client import QdrantClient, models
from services import QdrantService, qdrant_server

from mcip_qdrant import bulk
from mcip_qdrant.bulk import METADATA_KEY, bulk_load
from mcip_qdrant.store import Store, open_store


@pytest.fixture
def qdrant(tmp_path: Path) -> Iterator[QdrantService]:
    with qdrant_server(tmp_path / "server") as service:
        yield service


@pytest.fixture
def client(qdrant: QdrantService) -> Iterator[QdrantClient]:
    client = QdrantClient(url=qdrant.url, timeout=20, check_compatibility=False)
    yield client
    client.close()


@pytest.fixture
def store(client: QdrantClient) -> Store:
    client.create_collection(
        "images",
        vectors_config=models.VectorParams(size=4, distance=models.Distance.COSINE),
        hnsw_config=models.HnswConfigDiff(m=24),
        metadata={"other": {"kept": True}},
    )
    return Store.of(client)


def _m(client: QdrantClient) -> int:
    return client.get_collection("images").config.hnsw_config.m


def _saved(client: QdrantClient) -> Any:
    return (client.get_collection("images").config.metadata or {}).get(METADATA_KEY)


def test_deferred_and_put_back(store: Store, client: QdrantClient) -> None:
    with bulk_load(store, "images", defer=True):
        assert (_m(client), _saved(client)) == (0, {"m": 24})
    assert (_m(client), bool(_saved(client))) == (24, False)
    assert (client.get_collection("images").config.metadata or {})["other"] == {"kept": True}


def test_put_back_after_an_error(store: Store, client: QdrantClient) -> None:
    def load() -> None:
        with bulk_load(store, "images", defer=True):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        load()
    assert _m(client) == 24


def test_an_ordinary_load_changes_nothing(store: Store, client: QdrantClient) -> None:
    with bulk_load(store, "images", defer=False):
        assert _m(client) == 24
    assert (_m(client), _saved(client)) == (24, None)


@pytest.mark.parametrize("defer", [False, True])
def test_the_next_load_puts_back_what_a_killed_one_deferred(store: Store, client: QdrantClient, defer: bool) -> None:
    bulk._defer(store, "images")  # and then came kill -9
    with bulk_load(store, "images", defer=defer):
        assert (_m(client), _saved(client)) == (0, {"m": 24})
    assert _m(client) == 24


def test_embedded_mode_has_nothing_to_defer(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "q"))
    with bulk_load(store, "nowhere", defer=True):
        pass
    store.close()


def test_ingest_killed_in_a_bulk_load(
    clip: Exported, qdrant: QdrantService, client: QdrantClient, tmp_path: Path
) -> None:
    write_archive(tmp_path / "photos", 300)
    flags = ("ingest", tmp_path / "photos", "--bundle", clip.folder, "--qdrant", qdrant.url, "--batch-size", "1")
    process = start(*flags, "--bulk", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (client.collection_exists("images") and client.count("images").count > 20):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    finish(process, expect=-signal.SIGKILL)
    assert (_m(client), _saved(client)) == (0, {"m": 16})
    run(*flags, cwd=tmp_path)
    assert (_m(client), client.count("images").count) == (16, 300)

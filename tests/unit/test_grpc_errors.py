"""A gRPC server that refuses everything: what our checks make of its statuses. No Qdrant, but real sockets and real gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from qdrant_client import QdrantClient
from unit_support import manifest

from mcip_qdrant.collection import describe
from mcip_qdrant.errors import ConfigurationError, StoreError, StoreUnavailableError
from mcip_qdrant.space_guard import SpaceGuard
from mcip_qdrant.store import Store


class Refusing(grpc.GenericRpcHandler):
    """Ends every call with one status."""

    def __init__(self) -> None:
        self.status = grpc.StatusCode.NOT_FOUND
        self.methods: list[str] = []

    def service(self, handler_call_details: Any) -> Any:
        self.methods.append(handler_call_details.method.rsplit("/", 1)[-1])
        return grpc.unary_unary_rpc_method_handler(lambda _request, context: context.abort(self.status, "because"))


@pytest.fixture
def server() -> Iterator[tuple[Refusing, Store]]:
    handler = Refusing()
    server = grpc.server(ThreadPoolExecutor(2), handlers=(handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = QdrantClient(host="127.0.0.1", grpc_port=port, prefer_grpc=True, check_compatibility=False, timeout=5)
    yield handler, Store.of(client)
    client.close()
    server.stop(None).wait()


def test_no_such_collection(server: tuple[Refusing, Store]) -> None:
    assert describe(server[1], "images", attempts=1) is None


def test_statuses_become_our_errors(server: tuple[Refusing, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _seconds: None)
    handler, store = server
    expected = {
        grpc.StatusCode.INVALID_ARGUMENT: (StoreError, 1),
        grpc.StatusCode.UNAVAILABLE: (StoreUnavailableError, 2),
        grpc.StatusCode.RESOURCE_EXHAUSTED: (StoreUnavailableError, 2),
    }
    for status, (kind, attempts) in expected.items():
        handler.status = status
        handler.methods.clear()
        with pytest.raises(StoreError, match=f"{status.name}: because") as caught:
            SpaceGuard(store, "images", manifest()).collection()
        assert type(caught.value) is kind
        assert len(handler.methods) == attempts  # one retry, for what may pass
    handler.status = grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(ConfigurationError, match="MCIP_QDRANT_API_KEY"):
        SpaceGuard(store, "images", manifest()).collection()

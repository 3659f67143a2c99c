"""No error of qdrant-client's is missed: every class it defines, raises by itself in local mode, or lets through from below."""

from __future__ import annotations

import ast
import builtins
import importlib
import pkgutil
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import grpc
import httpx
import pydantic
import pytest
import qdrant_client
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from mcip_qdrant.errors import ConfigurationError, McipError, StoreError, StoreUnavailableError
from mcip_qdrant.store import qdrant_errors

SOURCE = Path(qdrant_client.__file__).parent


def translated(error: BaseException) -> McipError:
    with pytest.raises(McipError) as caught, qdrant_errors("http://here"):
        raise error
    assert caught.value.__cause__ is error
    assert "http://here" in str(caught.value)
    return caught.value


def response(status: int) -> UnexpectedResponse:
    return UnexpectedResponse(status, "no", b"because", httpx.Headers())


OWN: dict[type[Exception], Exception] = {
    QdrantException: QdrantException("Retry-After header value is not a valid integer"),
    ResourceExhaustedResponse: ResourceExhaustedResponse("slow down", 3),
    ApiException: ApiException("odd"),
    UnexpectedResponse: response(400),
    ResponseHandlingException: ResponseHandlingException(httpx.ConnectError("refused")),
}


def test_every_class_that_qdrant_client_defines() -> None:
    defined = set()
    for module in pkgutil.walk_packages([str(SOURCE)], "qdrant_client."):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = importlib.import_module(module.name)
        defined |= {
            value
            for value in vars(loaded).values()
            if isinstance(value, type)
            and issubclass(value, BaseException)
            and value.__module__.startswith("qdrant_client")
        }
    assert defined == set(OWN), "qdrant-client has new error classes: look at them, then add them here"
    for error in OWN.values():
        assert isinstance(translated(error), StoreError)


def raised_in(*folders: str) -> set[str]:
    """Names of the classes in `raise NAME(…)` statements, and AssertionError where there is an assert."""
    names = set()
    for file in (file for folder in folders for file in (SOURCE / folder).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                names.add("AssertionError")
            if isinstance(node, ast.Raise) and node.exc is not None:
                made = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                names.add(ast.unparse(made))
    return names


def test_every_bare_error_that_it_raises_in_local_mode_and_on_the_way() -> None:
    names = raised_in("local", ".", "conversions", "common", "embed", "http", "hybrid")
    bare = {name for name in names if isinstance(getattr(builtins, name, None), type)}
    assert {"ValueError", "RuntimeError", "KeyError", "TypeError", "NotImplementedError", "AssertionError"} <= bare
    for name in sorted(bare - {"StopIteration", "StopAsyncIteration", "ImportError"}):
        found = translated(getattr(builtins, name)("why"))
        assert isinstance(found, StoreError), name
        assert "why" in str(found)
    others = names - bare
    known = {kind.__name__ for kind in OWN} | {"UnexpectedResponse.for_response"}
    variables = {name for name in others if name.islower()}
    assert others - known - variables == set(), "qdrant-client raises something new: look at it, then add it here"


BELOW = [
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    EOFError,
    OSError,
]


@pytest.mark.parametrize("kind", BELOW)
def test_what_python_raises_under_local_mode(kind: type[Exception]) -> None:
    assert type(translated(kind("why"))) is StoreError


def test_damaged_files_of_local_mode() -> None:
    import pickle

    for error in (sqlite3.DatabaseError("disk image is malformed"), pickle.UnpicklingError("truncated")):
        assert type(translated(error)) is StoreError


def test_pydantic() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        pydantic.TypeAdapter(int).validate_python("x")
    assert type(translated(caught.value)) is StoreError
    assert "is not Qdrant, or of another version" in str(translated(ResponseHandlingException(caught.value)))


TRANSIENT = {
    *("TimeoutException", "ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout"),
    *("NetworkError", "ConnectError", "ReadError", "WriteError", "CloseError", "RemoteProtocolError", "ProxyError"),
}


def test_every_error_of_httpx_bare_and_wrapped() -> None:
    kinds = [
        value
        for name in httpx.__all__
        if isinstance(value := getattr(httpx, name), type) and issubclass(value, Exception)
    ]
    assert {kind.__name__ for kind in kinds} >= TRANSIENT
    for kind in kinds:
        error: Any = kind.__new__(kind)
        Exception.__init__(error, "why")
        wrapped = translated(ResponseHandlingException(error))
        assert isinstance(wrapped, StoreError)
        assert isinstance(wrapped, StoreUnavailableError) == (kind.__name__ in TRANSIENT), kind
        assert type(translated(error)) is type(wrapped)


class Failed(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__()
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "why"


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_every_status_of_grpc(code: grpc.StatusCode) -> None:
    found = translated(Failed(code))
    assert code.name in str(found)
    if code.name in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
        assert type(found) is ConfigurationError
        return
    transient = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"}
    assert type(found) is (StoreUnavailableError if code.name in transient else StoreError)


def test_a_grpc_error_that_says_nothing() -> None:
    assert type(translated(grpc.RpcError("odd"))) is StoreError


@pytest.mark.parametrize("status", [*range(400, 430), 451, 500, 501, 502, 503, 504, 507])
def test_every_http_status(status: int) -> None:
    found = translated(response(status))
    assert str(status) in str(found)
    expected: type[McipError] = StoreError
    if status in {401, 403}:
        expected = ConfigurationError
    elif status == 429 or status >= 500:
        expected = StoreUnavailableError
    assert type(found) is expected

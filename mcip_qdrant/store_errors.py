"""Every error that a call of qdrant-client can end with -> one of ours. Which of them may pass by themselves is decided here."""

from __future__ import annotations

import pickle
import sqlite3
from typing import Any

from mcip_qdrant.errors import ConfigurationError, McipError, StoreError, StoreUnavailableError

# What local mode raises by itself, or lets through from pydantic, numpy and its own bookkeeping.
_BARE = (ValueError, LookupError, TypeError, AttributeError, AssertionError)


def translated(location: str, error: Exception) -> McipError | None:
    """Our error for one of qdrant-client's; None for those that have nothing to do with Qdrant, our own included."""
    import httpx
    from grpc import RpcError
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

    match error:
        case McipError():
            return None
        case QdrantException():
            # HTTP 429: ResourceExhaustedResponse, or its base class where Retry-After is a date.
            return StoreUnavailableError(f"Qdrant at {location} is overloaded: {error}")
        case UnexpectedResponse():
            return _from_status(location, error.status_code or 0, error.content)
        case ResponseHandlingException():
            return _from_httpx(location, error.source)
        case httpx.HTTPError() | httpx.InvalidURL() | httpx.CookieConflict():
            return _from_httpx(location, error)
        case RpcError():
            return _from_grpc(location, error)
        case sqlite3.Error():
            return StoreError(f"embedded Qdrant at {location} cannot be written or read: {error}")
        case pickle.PickleError() | EOFError():
            return StoreError(f"embedded Qdrant at {location} is damaged: {error}")
        case RuntimeError() if "already accessed by another instance" in str(error):
            return StoreError(
                f"the embedded Qdrant at {location} is in use by another process. Wait for it to end, "
                "or run a Qdrant server and pass --qdrant http://HOST:6333"
            )
        case OSError() | RuntimeError():
            return StoreError(f"Qdrant at {location}: {error}")
        case ApiException():
            return StoreError(f"Qdrant at {location}: {type(error).__name__}: {error}")
    return StoreError(f"Qdrant at {location}: {type(error).__name__}: {error}") if isinstance(error, _BARE) else None


def _from_status(location: str, status: int, content: bytes) -> McipError:
    if status in {401, 403}:
        return ConfigurationError(f"Qdrant at {location} refused the API key (HTTP {status}); set MCIP_QDRANT_API_KEY")
    kind = StoreUnavailableError if status == 429 or status >= 500 else StoreError
    return kind(f"Qdrant at {location} answered HTTP {status}: {content.decode(errors='replace')[:300]}")


def _from_httpx(location: str, source: Exception) -> StoreError:
    import httpx

    if isinstance(source, ValueError):  # pydantic's ValidationError
        return StoreError(f"what answers at {location} is not Qdrant, or of another version: {source}")
    passing = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError, OSError)
    if isinstance(source, passing):
        return StoreUnavailableError(f"Qdrant at {location} cannot be reached: {source}")
    # A client that was closed, an impossible URL, an answer that cannot be decoded: the second attempt would be no better.
    return StoreError(f"Qdrant at {location}: {type(source).__name__}: {source}")


def _from_grpc(location: str, error: Any) -> McipError:
    from grpc import StatusCode

    code = error.code() if hasattr(error, "code") else StatusCode.UNKNOWN
    detail = error.details() if hasattr(error, "details") else str(error)
    if code in {StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED}:
        return ConfigurationError(
            f"Qdrant at {location} refused the API key (gRPC {code.name}); set MCIP_QDRANT_API_KEY"
        )
    passing = {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.RESOURCE_EXHAUSTED, StatusCode.ABORTED}
    kind = StoreUnavailableError if code in passing else StoreError
    return kind(f"Qdrant at {location}: {code.name}: {detail}")

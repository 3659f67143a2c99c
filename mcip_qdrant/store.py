"""Connecting to Qdrant, server or embedded, and translating its errors into ours."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import tenacity

from mcip_qdrant.errors import ConfigurationError, McipError, StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qdrant_client import QdrantClient

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

EMBEDDED_COMFORT = 20_000
"""Points beyond which embedded mode's brute-force search gets slow."""


@dataclass(frozen=True, slots=True)
class Store:
    """A Qdrant client with what the pipeline must know about it.

    Embedded mode is not thread-safe and runs in this process; a server is neither.
    """

    client: QdrantClient
    location: str
    embedded: bool
    _lock: Any = field(default_factory=threading.RLock)

    @classmethod
    def of(cls, client: QdrantClient) -> Self:
        """Wrap a client that the application made itself."""
        options = client.init_options
        path = options.get("path") or (":memory:" if options.get("location") == ":memory:" else None)
        location = (
            path or options.get("url") or options.get("location") or f"{options.get('host')}:{options.get('port')}"
        )
        return cls(client, str(location), embedded=path is not None)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        with self._lock if self.embedded else nullcontext(), qdrant_errors(self.location):
            yield

    def call(self, action: Callable[[QdrantClient], _T], *, attempts: int = 1) -> _T:
        """Run one client call, its errors translated; transient ones are retried with backoff and jitter.

        Raises:
            StoreUnavailableError: Qdrant is away or overloaded, after the last attempt.
            StoreError: Qdrant refused.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(StoreUnavailableError),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=20),
            stop=tenacity.stop_after_attempt(attempts),
            before_sleep=tenacity.before_sleep_log(logger, logging.WARNING),
            reraise=True,
        )
        for attempt in retrying:
            with attempt, self._guard():
                return action(self.client)
        raise AssertionError("tenacity returns or raises")

    def close(self) -> None:
        """Release the connection or the lock on the embedded folder."""
        self.client.close()


def open_store(location: str, *, api_key: str | None = None, timeout_s: int = 60) -> Store:
    """Connect to a Qdrant server by URL, or open an embedded folder by path.

    An embedded folder holds pickles, so it is trusted data: it is created with mode 0700, and one that belongs to another user
    is refused.

    Raises:
        StoreError: the folder is in use by another process, or cannot be opened.
        ConfigurationError: the folder belongs to another user.
    """
    from qdrant_client import QdrantClient

    if location.lower().startswith(("http://", "https://")):
        with qdrant_errors(location):
            client = QdrantClient(url=location, api_key=api_key, timeout=timeout_s, check_compatibility=False)
        return Store(client, location, embedded=False)
    if "://" in location:
        raise ConfigurationError(f"--qdrant {location}: expected http://, https:// or a folder")
    folder = Path(location)
    _prepare_folder(folder)
    with qdrant_errors(location), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Local mode is not recommended", category=UserWarning)
        client = QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    return Store(client, location, embedded=True)


def _prepare_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():
            raise ConfigurationError(
                f"--qdrant {folder}: this folder belongs to another user. Embedded Qdrant folders hold pickles, which can run code "
                "when they are read; use one of your own, or a Qdrant server"
            )
        # A process killed while qdrant-client wrote its first, empty meta.json leaves a file that it cannot read.
        meta = folder / "meta.json"
        if meta.exists() and meta.stat().st_size == 0 and not (folder / "collection").exists():
            meta.unlink()
    except OSError as exc:
        raise StoreError(f"--qdrant {folder}: cannot be used: {exc.strerror}") from exc


@contextmanager
def qdrant_errors(location: str) -> Iterator[None]:
    """Translate whatever qdrant-client raises, in local mode bare ValueError and RuntimeError among others."""
    from grpc import RpcError, StatusCode
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

    try:
        yield
    except McipError:
        raise
    except QdrantException as exc:
        # HTTP 429: ResourceExhaustedResponse, or its base class where Retry-After is a date.
        raise StoreUnavailableError(f"Qdrant at {location} is overloaded: {exc}") from exc
    except UnexpectedResponse as exc:
        detail = exc.content.decode(errors="replace")[:300]
        if exc.status_code in {401, 403}:
            raise ConfigurationError(
                f"Qdrant at {location} refused the API key (HTTP {exc.status_code}); set MCIP_QDRANT_API_KEY"
            ) from exc
        kind = StoreUnavailableError if exc.status_code == 429 or (exc.status_code or 0) >= 500 else StoreError
        raise kind(f"Qdrant at {location} answered HTTP {exc.status_code}: {detail}") from exc
    except ResponseHandlingException as exc:
        if isinstance(exc.source, ValueError):  # pydantic's ValidationError
            raise StoreError(f"what answers at {location} is not Qdrant, or of another version: {exc.source}") from exc
        raise StoreUnavailableError(f"Qdrant at {location} cannot be reached: {exc.source}") from exc
    except RpcError as exc:
        transient = exc.code() in {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.RESOURCE_EXHAUSTED}
        kind = StoreUnavailableError if transient else StoreError
        raise kind(f"Qdrant at {location}: {exc.code().name}: {exc.details()}") from exc
    except sqlite3.Error as exc:
        raise StoreError(f"embedded Qdrant at {location} cannot be written or read: {exc}") from exc
    except OSError as exc:
        raise StoreError(f"Qdrant at {location}: {exc}") from exc
    except RuntimeError as exc:
        if "already accessed by another instance" in str(exc):
            raise StoreError(
                f"the embedded Qdrant at {location} is in use by another process. Wait for it to end, "
                "or run a Qdrant server and pass --qdrant http://HOST:6333"
            ) from exc
        raise StoreError(f"Qdrant at {location}: {exc}") from exc
    except (ValueError, KeyError, TypeError, AssertionError, NotImplementedError, ApiException) as exc:
        raise StoreError(f"Qdrant at {location}: {type(exc).__name__}: {exc}") from exc

"""Connecting to Qdrant, server or embedded, and translating its errors into ours."""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import tenacity

from mcip_qdrant.errors import ConfigurationError, StoreError, StoreUnavailableError
from mcip_qdrant.store_errors import translated

if TYPE_CHECKING:
    from collections.abc import Callable

    from qdrant_client import QdrantClient

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d{1,5}(/.*)?")
# In the folder of a process that was killed before it wrote meta.json; on a freshly made disk.
_MAY_BE_THERE = frozenset({"collection", "lost+found"})

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
        return cls(client, _without_user(str(location)), embedded=path is not None)

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
            before_sleep=_say_why,
            reraise=True,
        )
        for attempt in retrying:
            with attempt, self._guard():
                return action(self.client)
        raise AssertionError("tenacity returns or raises")

    def close(self) -> None:
        """Release the connection or the lock on the embedded folder."""
        self.client.close()


def open_store(location: str, *, create: bool = True, api_key: str | None = None, timeout_s: int = 60) -> Store:
    """Connect to a Qdrant server by URL, or open an embedded folder by path.

    An embedded folder holds pickles, so it is trusted data: it is created with mode 0700, and one that belongs to another user
    is refused. So is a folder that holds something else: Qdrant would write its files between the pictures.

    Args:
        create: make an embedded folder where there is none; for those who only read, a missing one is a mistyped path.
        timeout_s: how long a Qdrant server may take for one answer.

    Raises:
        StoreError: no such folder, it is in use by another process, or it cannot be opened.
        ConfigurationError: the folder belongs to another user or holds other things, or this is no location.
    """
    from qdrant_client import QdrantClient

    if location.lower().startswith(("http://", "https://")):
        shown = _without_user(location)
        with qdrant_errors(shown):
            client = QdrantClient(url=location, api_key=api_key, timeout=timeout_s, check_compatibility=False)
        return Store(client, shown, embedded=False)
    folder = Path(location)
    if not location or "://" in location or (_HOST_AND_PORT.fullmatch(location) and not folder.exists()):
        raise ConfigurationError(
            f"--qdrant {_without_user(location)!r}: expected a server (http://HOST:6333 or https://HOST:6333) or a folder"
        )
    _prepare_folder(folder, create=create)
    with qdrant_errors(location), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Local mode is not recommended", category=UserWarning)
        client = QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    return Store(client, location, embedded=True)


def _without_user(location: str) -> str:
    """The URL without user and password, which must not get into messages and logs."""
    scheme, separator, rest = location.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _say_why(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("%s; trying again in %.1f s", error, state.upcoming_sleep)


def _prepare_folder(folder: Path, *, create: bool) -> None:
    try:
        if not create and not folder.exists():
            raise StoreError(
                f"--qdrant {folder}: no such folder. Fill one first: mcip-qdrant ingest FOLDER --qdrant {folder}"
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():
            raise ConfigurationError(
                f"--qdrant {folder}: this folder belongs to another user. Embedded Qdrant folders hold pickles, which can run code "
                "when they are read; use one of your own, or a Qdrant server"
            )
        visible = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
        if "meta.json" not in visible and not (create and visible <= _MAY_BE_THERE):
            raise ConfigurationError(
                f"--qdrant {folder}: this folder is no embedded Qdrant{'' if not create else ', and it is not empty'}. "
                "Name the folder that `mcip-qdrant ingest` has filled, or one that does not exist yet"
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
    try:
        yield
    except Exception as exc:
        ours = translated(location, exc)
        if ours is None:
            raise
        raise ours from exc

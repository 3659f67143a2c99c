"""The collection as the server uses it: bounded numbers of Qdrant calls at a time, each in a thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_json

from mcip_qdrant.collection import describe
from mcip_qdrant.errors import InvalidQueryError, StoreError, StoreUnavailableError
from mcip_qdrant.hits import Hits
from mcip_qdrant.points import OWN_FIELDS
from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.search import FacetValue, ImageCollection
from mcip_qdrant.server.batching import OverloadedError
from mcip_qdrant.server.problems import NoCollectionError
from mcip_qdrant.space_guard import SpaceGuard
from mcip_qdrant.store import Store

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

TIMEOUT_S = 10
"""How long Qdrant may take for one answer."""

_CALLS_AT_ONCE = 16
_WAITING = 256
_SAMPLE = 256
_FIELDS_HOLD_S = 30.0
_FACET_TYPES = ("keyword", "integer", "bool", "uuid")
_WORTH_FILTERING = frozenset({"source", "format"})


class Archive:
    """Searches, counts and looks up images of one collection. Belongs to one event loop."""

    def __init__(self, store: Store, name: str, encoder: QueryEncoder, *, patience_s: float) -> None:
        """Tie a collection to an encoder. Asks nothing of Qdrant yet.

        Args:
            patience_s: how long a request waits for its turn before it is refused.
        """
        self.name = name
        self._store = store
        self._manifest = encoder.bundle.manifest
        self._collection = ImageCollection(store.client, name, encoder, timeout_s=TIMEOUT_S)
        self._guard = SpaceGuard(store, name, self._manifest)
        # Embedded Qdrant runs in this process and is not made for several threads.
        at_once = 1 if store.embedded else _CALLS_AT_ONCE
        self._turns = asyncio.Semaphore(at_once)
        # Threads of its own: a Qdrant that hangs must not take those that answer embeddings.
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="qdrant")
        self._waiting = 0
        self._patience_s = patience_s
        self._fields: tuple[float, list[str]] | None = None

    def close(self) -> None:
        """Let go of the threads. A call that hangs ends with its timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def search(self, **arguments: Any) -> Hits:
        """`ImageCollection.search` with these arguments."""
        return await self._turn(lambda: self._collection.search(**arguments))

    async def count(self) -> int:
        """How many images there are."""
        return await self._turn(self._collection.count)

    async def facets(
        self, fields: Sequence[str] | None, query_filter: models.Filter | None, limit: int
    ) -> dict[str, list[FacetValue]]:
        """The most frequent values of fields.

        Args:
            fields: None for those that are worth filtering by: indexed or frequent, and with several values.
        """
        names = await self._turn(self._worth_filtering) if fields is None else fields
        found = {}
        for name in names:
            values = await self._turn(
                lambda name=name: self._collection.facets(name, limit=limit, filter=query_filter)  # type: ignore[misc]
            )
            found[name] = values
        return found

    async def payload(self, point: str) -> Mapping[str, Any]:
        """What the collection says of one point.

        Raises:
            NoCollectionError: it has no such point.
        """
        records = await self._turn(
            lambda: self._guard.read(lambda client, name: client.retrieve(name, [point], with_payload=True))
        )
        if not records:
            raise NoCollectionError(f"collection {self.name!r} has no image {point}")
        return records[0].payload or {}

    async def _turn(self, work: Callable[[], _T]) -> _T:
        if self._waiting >= _WAITING:
            raise OverloadedError("too many searches are waiting for Qdrant")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience_s):
                await self._turns.acquire()
        except TimeoutError:
            raise OverloadedError("too many searches are waiting for Qdrant", self._patience_s / 10) from None
        finally:
            self._waiting -= 1
        working = asyncio.get_running_loop().run_in_executor(self._threads, self._told_apart, work)
        # The turn ends with the thread, which nothing can stop, not with the client's patience.
        working.add_done_callback(lambda _done: self._turns.release())
        try:
            return await asyncio.wait_for(asyncio.shield(working), self._patience_s)
        except TimeoutError:
            working.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else will look
            raise StoreUnavailableError(f"Qdrant did not answer within {self._patience_s:g} s") from None

    def _told_apart(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except StoreUnavailableError:
            raise
        except StoreError as exc:
            if describe(self._store, self.name, attempts=1) is None:
                raise NoCollectionError(
                    f"there is no collection {self.name!r} (any more); ingest images into it"
                ) from exc
            if _is_about_the_request(exc):
                logger.info("Qdrant refused a request: %s", exc)
                raise InvalidQueryError("Qdrant does not take this filter or this field name") from exc
            raise

    def _worth_filtering(self) -> list[str]:
        if self._fields is None or monotonic() - self._fields[0] > _FIELDS_HOLD_S:
            self._fields = monotonic(), self._guard.read(self._promising_fields)
        return self._fields[1]

    def _promising_fields(self, client: QdrantClient, name: str) -> list[str]:
        """A server counts indexed fields only; local mode has no indexes, so a sample of its points decides."""
        if not self._store.embedded:
            schema = client.get_collection(name).payload_schema
            indexed = [field for field, index in schema.items() if index.data_type.value in _FACET_TYPES]
            return sorted(_own_choice(indexed))
        records, _ = client.scroll(name, limit=_SAMPLE, with_payload=True)
        values: dict[str, set[Any]] = {}
        for record in records:
            for field, value in (record.payload or {}).items():
                if isinstance(value, (str, int)):
                    values.setdefault(field, set()).add(value)
        return sorted(
            field for field in _own_choice(list(values)) if 1 < len(values[field]) <= max(2, len(records) // 2)
        )


def _own_choice(fields: Sequence[str]) -> list[str]:
    return [field for field in fields if field not in OWN_FIELDS or field in _WORTH_FILTERING]


def _is_about_the_request(error: StoreError) -> bool:
    """Whether Qdrant understood who asks and what for, but not the filter or field: HTTP 400 or 422, in local mode a bare error."""
    cause = error.__cause__
    return getattr(cause, "status_code", None) in {400, 422} or type(cause) in {
        ValueError,
        TypeError,
        NotImplementedError,
    }


def parse_filter(given: Mapping[str, Any] | None) -> models.Filter | None:
    """Qdrant's filter as JSON.

    Raises:
        InvalidQueryError: it is none.
    """
    if given is None:
        return None
    from qdrant_client import models

    try:
        to_json(given)  # half a character could not be sent to Qdrant
        return models.Filter.model_validate(given)
    except (ValidationError, PydanticSerializationError, RecursionError) as exc:
        raise InvalidQueryError(
            'filter is not one of Qdrant\'s, such as {"must": [{"key": "source", "match": {"value": "photos"}}]}'
        ) from exc

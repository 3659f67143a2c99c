"""`ImageCollection`: search a collection by text, by picture or by another image of it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.collection import check_space
from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.keys import point_id
from mcip_qdrant.query import ImageLike, QueryEncoder
from mcip_qdrant.store import Store

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

_READ_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Hit:
    """One image found: its point id, cosine to the query (-1..1), uri, and whole payload."""

    id: str
    score: float
    uri: str
    payload: dict[str, Any]

    @property
    def key(self) -> str:
        """`<source>/<relative path>`."""
        return str(self.payload.get("key", self.id))


class ImageCollection:
    """A Qdrant collection and the encoder of the model that filled it.

    The first search compares the two and refuses a collection of another model.
    """

    def __init__(self, client: QdrantClient, name: str, encoder: QueryEncoder) -> None:
        self.name = name
        self.encoder = encoder
        self._store = Store.of(client)
        self._checked = False

    def search(
        self,
        *,
        text: str | None = None,
        image: ImageLike | None = None,
        like: str | None = None,
        vector: NDArray[np.float32] | Sequence[float] | None = None,
        limit: int = 10,
        offset: int = 0,
        filter: models.Filter | None = None,  # noqa: A002 - the word Qdrant's users know
        score_threshold: float | None = None,
    ) -> list[Hit]:
        """The images nearest to one query, best first.

        Args:
            text: words that describe the picture.
            image: a path, bytes, PIL image or uint8 array.
            like: key or point id of an image in the collection; that image itself is left out.
            vector: `[D]` numbers, as `QueryEncoder` returns them.
            limit: at most this many hits, at least 1.
            offset: leave out this many of the best.
            filter: Qdrant's own filter on payload fields.
            score_threshold: leave out hits below this cosine.

        Raises:
            InvalidQueryError: not exactly one query given, empty text, unknown key, bad limit.
            ImageError: the picture cannot be read.
            SpaceMismatchError, ForeignCollectionError: the collection is not this model's.
            StoreError: Qdrant refused or is away.
        """
        if limit < 1 or offset < 0:
            raise InvalidQueryError(f"limit must be at least 1 and offset at least 0, not {limit} and {offset}")
        self._check()
        query = self._query(text, image, like, vector)
        answer = self._store.call(
            lambda client: client.query_points(
                self.name,
                query=query,
                limit=limit,
                offset=offset,
                query_filter=filter,
                score_threshold=score_threshold,
                with_payload=True,
            ),
            attempts=_READ_ATTEMPTS,
        )
        return [_hit(point) for point in answer.points]

    def _check(self) -> None:
        if not self._checked:
            check_space(self._store, self.name, self.encoder.bundle.manifest)
            self._checked = True

    def _query(
        self, text: str | None, image: ImageLike | None, like: str | None, vector: object
    ) -> NDArray[np.float32] | str:
        if sum(given is not None for given in (text, image, like, vector)) != 1:
            raise InvalidQueryError("give exactly one of text, image, like and vector")
        if text is not None:
            return self.encoder.text(text)
        if image is not None:
            return self.encoder.image(image)
        if like is not None:
            return self._known_id(like)
        return self._checked_vector(vector)

    def _checked_vector(self, vector: Any) -> NDArray[np.float32]:
        dimension = self.encoder.bundle.embedding_dim
        try:
            numbers = np.asarray(vector, dtype=np.float32)
        except (TypeError, ValueError) as exc:
            raise InvalidQueryError(f"vector must be {dimension} numbers") from exc
        if numbers.shape != (dimension,) or not np.isfinite(numbers).all():
            raise InvalidQueryError(
                f"vector must be {dimension} finite numbers, not an array of shape {list(numbers.shape)}"
            )
        return numbers

    def _known_id(self, like: str) -> str:
        """The id of an image named by id or key; names our own error where Qdrant's would be vague."""
        candidates = [point_id(like)]
        with contextlib.suppress(ValueError):  # not an id, so it is a key
            candidates.insert(0, str(uuid.UUID(like)))
        found = self._store.call(
            lambda client: client.retrieve(self.name, candidates, with_payload=False), attempts=_READ_ATTEMPTS
        )
        if not found:
            raise InvalidQueryError(f"collection {self.name!r} has no image with key or id {like!r}")
        return str(found[0].id)


def _hit(point: models.ScoredPoint) -> Hit:
    payload = point.payload or {}
    return Hit(id=str(point.id), score=point.score, uri=str(payload.get("uri", "")), payload=payload)

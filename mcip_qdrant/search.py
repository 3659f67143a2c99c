"""`ImageCollection`: search a collection by text, by picture, by a mix of both, or by images that it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant import examples
from mcip_qdrant.answer import Answer, GroupedAnswer
from mcip_qdrant.errors import InvalidQueryError, StoreError
from mcip_qdrant.hits import Hits
from mcip_qdrant.picture import ImageLike
from mcip_qdrant.query import MixPart, QueryEncoder
from mcip_qdrant.request import Examples, Like, Query, checked_filter, checked_vector, whole_number
from mcip_qdrant.space_guard import SpaceGuard
from mcip_qdrant.store import Store

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

_LIMIT, _GROUP_SIZE = 10, 3


@dataclass(frozen=True, slots=True)
class FacetValue:
    """One value of a payload field, and how many points have it."""

    value: str | int | bool
    count: int


class ImageCollection:
    """A Qdrant collection and the encoder of the model that filled it. Safe to share between threads.

    Before the first read, and every two seconds after, the two are compared: a collection of another model is refused, also one that
    an alias was moved to meanwhile. Reads are tried twice where Qdrant is away; nothing here writes.
    """

    def __init__(
        self,
        client: QdrantClient,
        name: str,
        encoder: QueryEncoder,
        *,
        roots: Mapping[str, Path] | None = None,
        timeout_s: int | None = None,
    ) -> None:
        """Tie a collection to an encoder. Asks nothing of Qdrant yet.

        Args:
            client: of any kind: REST, gRPC or local mode.
            name: of a collection or an alias.
            roots: where each source lies on this machine, for showing hits whose uri is another machine's.
            timeout_s: seconds that one read may take; default: the client's own (5 for REST).
        """
        self.name = name
        self.encoder = encoder
        self.roots = roots
        self._timeout_s = timeout_s
        self._guard = SpaceGuard(Store.of(client), name, encoder.bundle.manifest)

    def search(
        self,
        *,
        text: str | None = None,
        image: ImageLike | None = None,
        like: Examples | Like | None = None,
        mix: Sequence[MixPart] | None = None,
        vector: NDArray[np.float32] | Sequence[float] | None = None,
        limit: int = _LIMIT,
        offset: int = 0,
        filter: models.Filter | None = None,  # noqa: A002 - the word Qdrant's users know
        score_threshold: float | None = None,
        group_by: str | None = None,
        group_size: int = _GROUP_SIZE,
        search_params: models.SearchParams | None = None,
        with_vectors: bool = False,
        diverse: bool | float = False,
        collapse_duplicates: bool = True,
    ) -> Hits:
        """The images nearest to one query, best first. Exactly one of the first five arguments is given.

        Args:
            text: words that describe the picture.
            image: a path, bytes, file object, PIL image or uint8 array.
            like: key or point id (str or UUID) of an image in the collection, several, or `Like(positive=…, negative=…)`. The
                examples themselves are left out, with `collapse_duplicates` their copies too.
            mix: `(what, weight)` pairs, as `QueryEncoder.mix` takes them.
            vector: `[D]` numbers, as `QueryEncoder` returns them.
            limit: at most this many hits, at least 1; with `group_by`, this many groups.
            offset: leave out this many of the best.
            filter: Qdrant's own filter on payload fields.
            score_threshold: leave out hits below this cosine.
            group_by: payload field; hits come group by group, images without the field not at all.
            group_size: at most this many hits of each group.
            search_params: Qdrant's own, such as `hnsw_ef` or `exact`.
            with_vectors: let each hit carry its vector.
            diverse: spread the hits out by Qdrant's maximal marginal relevance; a number from 0 (not at all) to 1, True is 0.5.
            collapse_duplicates: images with equal `sha256` are one hit; offset and limit then count images.

        Raises:
            InvalidQueryError: not exactly one query given, empty text, unknown key, bad limit.
            ImageError: the picture cannot be read.
            SpaceMismatchError, ForeignCollectionError: the collection is not this model's.
            StoreError: Qdrant refused or is away.
        """
        whole_number("limit", limit, least=1)
        query = Query(
            text=text,
            image=image,
            like=like,
            mix=mix,
            vector=vector,
            limit=limit,
            offset=offset,
            filter=filter,
            score_threshold=score_threshold,
            search_params=search_params,
            with_vectors=with_vectors,
            diverse=diverse,
        )
        if group_by is not None:
            if not isinstance(group_by, str) or not group_by:
                raise InvalidQueryError(f"group_by must be the name of a payload field, not {group_by!r}")
            return self._groups(query, group_by, whole_number("group_size", group_size, least=1), collapse_duplicates)
        return self._answers([query], collapse_duplicates)[0]

    def search_many(
        self, queries: Iterable[Query | Mapping[str, Any]], *, limit: int = _LIMIT, collapse_duplicates: bool = True
    ) -> list[Hits]:
        """Several searches at once: their texts are one batch, their pictures another, and Qdrant gets one request.

        A second request is made only for queries whose hits held so many copies that images are missing.

        Args:
            queries: `Query` objects, or dicts of their arguments.
            limit: for queries that name none.

        Raises:
            InvalidQueryError, ImageError, SpaceMismatchError, ForeignCollectionError, StoreError: as `search`.
        """
        whole_number("limit", limit, least=1)
        if isinstance(queries, (str, Mapping)) or not isinstance(queries, Iterable):
            raise InvalidQueryError("search_many() takes a list of queries; for one query use search()")
        return self._answers([Query.of(query, limit=limit) for query in queries], collapse_duplicates)

    def count(self, filter: models.Filter | None = None) -> int:  # noqa: A002 - as in search
        """How many points the collection holds, copies included; with a filter, how many pass it.

        Raises:
            SpaceMismatchError, ForeignCollectionError, StoreError: as `search`.
        """
        passing = checked_filter(filter)
        return self._guard.read(
            lambda client, name: client.count(name, count_filter=passing, exact=True, timeout=self._timeout_s)
        ).count

    def facets(
        self,
        field: str,
        *,
        limit: int = _LIMIT,
        filter: models.Filter | None = None,  # noqa: A002 - as in search
    ) -> list[FacetValue]:
        """The most frequent values of a payload field, most frequent first. A server needs a payload index on the field.

        Raises:
            InvalidQueryError: the field has no payload index; bad limit.
            SpaceMismatchError, ForeignCollectionError, StoreError: as `search`.
        """
        whole_number("limit", limit, least=1)
        passing = checked_filter(filter)
        if not isinstance(field, str) or not field:
            raise InvalidQueryError(f"field must be the name of a payload field, not {field!r}")
        try:
            answer = self._guard.read(
                lambda client, name: client.facet(
                    name, key=field, facet_filter=passing, limit=limit, exact=True, timeout=self._timeout_s
                )
            )
        except StoreError as exc:
            if "index" not in str(exc).lower():
                raise
            raise InvalidQueryError(
                f"field {field!r} of collection {self.name!r} has no payload index, which facets need: "
                f"client.create_payload_index({self.name!r}, {field!r}, 'keyword'), or at the next ingestion --index {field}:keyword"
            ) from exc
        return [FacetValue(hit.value, hit.count) for hit in answer.hits]

    def _answers(self, queries: Sequence[Query], collapse: bool) -> list[Hits]:
        if not queries:
            return []
        answers = self._prepared(queries, collapse)
        waiting = answers
        while waiting:
            given = self._batch([answer.request() for answer in waiting])
            waiting = [answer for answer, one in zip(waiting, given, strict=True) if not answer.complete(one.points)]
        return [Hits(answer.hits(), roots=self.roots) for answer in answers]

    def _batch(self, requests: list[models.QueryRequest]) -> list[models.QueryResponse]:
        return self._guard.read(lambda client, name: client.query_batch_points(name, requests, timeout=self._timeout_s))

    def _groups(self, query: Query, field: str, size: int, collapse: bool) -> Hits:
        if query.offset or query.is_diverse:
            raise InvalidQueryError("group_by goes with neither offset nor diverse; ask for a larger limit")
        (answer,) = self._prepared([query], collapse)
        grouped = GroupedAnswer(answer, field, size)
        while not grouped.complete(self._grouped(grouped.request())):
            pass
        return Hits(grouped.hits(), roots=self.roots)

    def _grouped(self, request: Mapping[str, Any]) -> list[models.PointGroup]:
        return self._guard.read(
            lambda client, name: client.query_points_groups(name, **request, timeout=self._timeout_s)
        ).groups

    def _prepared(self, queries: Sequence[Query], collapse: bool) -> list[Answer]:
        """Everything that must be known before Qdrant can be asked, in one batch of each kind."""
        dimension = self.encoder.bundle.embedding_dim
        given = [None if one.vector is None else checked_vector(one.vector, dimension) for one in queries]
        self._guard.collection()  # before a graph is loaded
        known = self._known([one.like for one in queries if isinstance(one.like, Like)])
        mixes = [mix for one in queries if (mix := one.as_mix()) is not None]
        encoded = iter(self.encoder.mixes(mixes) if mixes else ())
        return [
            self._by_example(query, query.like, known, collapse)
            if isinstance(query.like, Like)
            else self._by_vector(query, next(encoded) if vector is None else vector, collapse)
            for query, vector in zip(queries, given, strict=True)
        ]

    def _by_vector(self, query: Query, vector: NDArray[np.float32], collapse: bool) -> Answer:
        fetch = Answer.expected(query, collapse=collapse)
        return Answer(query, query.nearest(vector.tolist(), fetch=fetch), collapse, fetch=fetch)

    def _by_example(
        self, query: Query, like: Like, known: Mapping[str | int, examples.Found], collapse: bool
    ) -> Answer:
        fetch = Answer.expected(query, collapse=collapse)
        positive = examples.resolve(like.positive, known, self.name)
        negative = examples.resolve(like.negative, known, self.name)
        target = (
            query.nearest(positive[0].id, fetch=fetch)
            if query.is_diverse
            else examples.recommend(like, positive, negative)
        )
        return Answer(query, target, collapse, {one.sha256 for one in (*positive, *negative) if one.sha256}, fetch)

    def _known(self, likes: Sequence[Like]) -> dict[str | int, examples.Found]:
        ids = [one for like in likes for one in examples.candidates(like)]
        if not ids:
            return {}
        return examples.found(
            self._guard.read(
                lambda client, name: client.retrieve(name, ids, with_payload=["sha256"], timeout=self._timeout_s)
            )
        )

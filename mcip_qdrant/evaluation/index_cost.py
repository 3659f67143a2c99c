"""What a collection's index settings cost: the same queries by exact search and by the index, texts and images apart.

Text queries are not drawn from the images' distribution, while HNSW's graph and quantization are made from the images'
vectors alone: an index that loses nothing for pictures can lose a lot for texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.errors import SourceError
from mcip_qdrant.evaluation.answers import Archive, Asked, image_figures, lengths, nearest_ids, text_figures
from mcip_qdrant.evaluation.datasets import NO_CLASS
from mcip_qdrant.evaluation.embed import Embedder, Watch
from mcip_qdrant.evaluation.evaluation import Evaluation, Example, Neighbour, Shown
from mcip_qdrant.evaluation.searches import Point, Searches, asked_first, describe_index
from mcip_qdrant.evaluation.similarity import Rows
from mcip_qdrant.keys import path_from_uri

if TYPE_CHECKING:
    from qdrant_client import models

_WORST: Final = 6
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Questions:
    """What to ask: how many images (drawn by seed), which payload fields hold class and captions, and texts of the user's own.

    `depth` is how long a ranking is asked for and judged; `ks` are the values of k.
    """

    ks: Sequence[int] = (1, 10, 100)
    depth: int = 100
    sample: int = 1000
    seed: int = 0
    class_field: str | None = None
    caption_field: str | None = None
    texts: Sequence[str] = ()


def index_cost(searches: Searches, embedder: Embedder, questions: Questions) -> tuple[Evaluation, Evaluation]:
    """Ask everything twice. Returns the evaluation of exact search and that of the index.

    * index recall@k: the share of the k nearest by exact search that the index returns when it is asked for k. An item that
      is as similar as the k-th (within 1e-6) is as good as it. Image queries are the vectors of points, the point itself left
      out; text queries are captions or texts given.
    * With classes: R@k and mAP@depth with the query left out (AP cut off at `depth`, divided by the right images that can be
      there), and the accuracy of 21 weighted neighbours, of which those without class do not vote. With captions: text-to-image R@k.

    Raises:
        SourceError: too few points, or no point has the field that was named.
        StoreError: Qdrant failed.
    """
    watch = embedder.watch
    archive = _listed(searches, questions, watch)
    drawn = np.random.default_rng(questions.seed).permutation(len(archive.points))[: questions.sample]
    chosen = np.sort(drawn).tolist()
    pictures = [(place, _shown(archive.points[place])) for place in chosen]
    vectors = searches.vectors([archive.points[place].id for place in chosen])
    wanted = lengths(questions.ks, questions.depth, classes=bool(archive.names))
    own = [archive.points[place].id for place in chosen]
    images = _ask(searches, vectors, pictures, wanted, watch, "image queries", own=own)
    written = _texts(archive, chosen, questions)
    texts = []
    if written:
        encoded = embedder.texts([text for _, text in written])
        texts = _ask(searches, encoded, written, sorted(questions.ks), watch, "text queries")
    judged = [*image_figures(images, archive, questions.ks, questions.depth)]
    judged += text_figures(texts, archive, questions.ks) if texts else ()
    info = searches.info()
    sizes = {"points": len(archive.points), "image queries": len(images), "text queries": len(texts)}
    if archive.names:
        sizes["classes"] = len(archive.names)
    exact = Evaluation(
        rule="the same queries by exact search and by the index; text queries and image queries apart",
        model="exact search",
        space_id=embedder.model.space_id,
        variant="every vector compared, quantization ignored",
        preparation="as stored in the collection",
        sizes=sizes,
        figures=[pair[0] for pair in judged],
        facts=_times("exact search", images, texts, _exact_seconds),
    )
    shown_k = questions.ks[min(1, len(questions.ks) - 1)]
    scores = {pair[1].name: pair[1].score.values for pair in judged}
    index = replace(
        exact,
        model="index",
        variant=describe_index(info, searches.settings),
        figures=[pair[1] for pair in judged],
        notices=_notices(info, searches, len(archive.points)),
        facts=_times("index", images, texts, lambda one: {k: one.index[k].seconds for k in questions.ks}),
        examples_of=f"index recall@{shown_k}",
        examples=[
            example
            for asked, kind in ((images, "images"), (texts, "texts"))
            if asked
            for example in _examples(asked, archive, scores[f"index recall@{shown_k}, {kind}"], shown_k)
        ],
    )
    return exact, index


def _listed(searches: Searches, questions: Questions, watch: Watch) -> Archive:
    fields = [name for name in (questions.class_field, questions.caption_field) if name]
    watch.begin("points", searches.info().points_count or 0)
    points = sorted(searches.points(fields, watch.advance), key=lambda point: point.id)
    if len(points) < 2:
        raise SourceError(f"collection {searches.name!r} has {len(points)} points; at least two are needed")
    for name in fields:
        if not any(point.payload.get(name) not in (None, "", []) for point in points):
            raise SourceError(f"no point of collection {searches.name!r} has the payload field {name!r}")
    classes = [_class(point, questions.class_field) for point in points]
    names = sorted({name for name in classes if name is not None})
    number = {name: label for label, name in enumerate(names)}
    labels = np.array([NO_CLASS if name is None else number[name] for name in classes], dtype=np.int64)
    return Archive(points, labels, names)


def _class(point: Point, name: str | None) -> str | None:
    value = point.payload.get(name) if name else None
    return None if value is None or isinstance(value, (list, dict)) or value == "" else str(value)


def _texts(archive: Archive, chosen: Sequence[int], questions: Questions) -> list[tuple[int | None, str]]:
    found: list[tuple[int | None, str]] = [(None, text) for text in questions.texts if text.strip()]
    if questions.caption_field:
        for place in chosen:
            value = archive.points[place].payload.get(questions.caption_field)
            said = value if isinstance(value, list) else [value]
            found += [(place, text) for text in said if isinstance(text, str) and text.strip()]
    return found


def _shown(point: Point) -> Shown:
    path = path_from_uri(point.uri)
    return point.uri or point.id if path is None else Path(os.fsdecode(path))


def _ask(
    searches: Searches,
    vectors: Rows,
    queries: Sequence[tuple[int | None, Shown]],
    wanted: Sequence[int],
    watch: Watch,
    what: str,
    *,
    own: Sequence[str] | None = None,
) -> list[Asked]:
    """Each query by exact search and by the index, by the index once for each length; `own` are ids to leave out of the answers."""
    watch.begin(what, len(queries))
    extra = 0 if own is None else 1
    asked = []
    for place, (point, shown) in enumerate(queries):
        vector = vectors[place : place + 1][0]
        left_out = "" if own is None else own[place]
        exact = searches.nearest(vector, max(wanted), left_out=left_out)
        index = {
            length: searches.search(vector, length + extra, exact=False).without(left_out, length) for length in wanted
        }
        asked.append(Asked(point, shown, exact, index))
        watch.advance(1)
    return asked


def _exact_seconds(one: Asked) -> dict[int, float]:
    return {min(len(one.exact.ids), asked_first(max(one.index))): one.exact.seconds}


def _times(
    name: str, images: Sequence[Asked], texts: Sequence[Asked], seconds: Callable[[Asked], Mapping[int, float]]
) -> dict[str, str]:
    """Median milliseconds of a query for each number of answers, one query at a time, transport included."""
    facts = {}
    for kind, asked in (("image", images), ("text", texts)):
        taken = [seconds(one) for one in asked]
        for length in sorted({length for one in taken for length in one}):
            median = float(np.median([one[length] for one in taken if length in one]))
            facts[f"{name}, median of {kind} queries for {length} answers"] = f"{1000 * median:.2f} ms"
    return facts


def _notices(info: models.CollectionInfo, searches: Searches, points: int) -> list[str]:
    notices = []
    if searches.store.embedded:
        notices.append(
            "embedded Qdrant has no index and compares every vector: nothing is lost, and nothing is learned of a server"
        )
    elif (indexed := info.indexed_vectors_count or 0) < points:
        notices.append(
            f"the index covers {indexed} of {points} points (status {info.status.value}): Qdrant compares the others one by one, "
            "which loses nothing. Segments below its indexing_threshold are never indexed"
        )
    return notices


def _examples(asked: Sequence[Asked], archive: Archive, values: NDArray[np.float64], k: int) -> list[Example]:
    shown = []
    for place in np.argsort(values, kind="stable")[:_WORST]:
        one = asked[int(place)]
        near = nearest_ids(one.exact, k)
        found = list(zip(one.index[k].ids, one.index[k].scores, strict=True))[:_SHOWN]
        neighbours = [
            Neighbour(_shown(archive.points[archive.row[item]]), float(score), item in near)
            for item, score in found
            if item in archive.row
        ]
        shown.append(Example(one.shown, float(values[place]), f"the {k} nearest by exact search", neighbours))
    return shown

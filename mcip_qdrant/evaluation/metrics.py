"""The figures themselves: pure functions of unit vectors and labels, with a value for every query.

Vectors are float32 `[N, D]`, L2 norm 1 (`similarity.Rows`); the similarity is the cosine. Everywhere:

* **Ties count against the model**, and the order of the database never matters: what is as similar as a right answer ranks
  before it. For average precision that is scikit-learn's definition: precision where the whole group of ties is in.
* **Undefined is not zero.** A query that has no right answer has the value NaN and is left out of the mean; `undefined`
  counts them.
* **Duplicates** are items like others. Only the query's own database entry is special: it ranks first where it stays in
  the ranking, whatever duplicates it, and is absent where it does not.
* An image with the label `NO_CLASS` (-1) is a distractor: in the database, never right, never a query.

How ranks and votes follow from that is said at each function. Matrix products are float32, everything after is float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.evaluation.ranking import alone_on_top, average_precision, rank_of_best, trapezoid_ap, votes
from mcip_qdrant.evaluation.scores import CaptionScores, Junk, PerQuery, Progress, Setting
from mcip_qdrant.evaluation.similarity import DEFAULT_BLOCK_BYTES, Rows, similarity_blocks


def full_ranking_map(
    vectors: Rows,
    labels: NDArray[np.int64],
    *,
    query_in_ranking: bool = True,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_queries: Progress | None = None,
) -> PerQuery:
    """Average precision over the full ranking; every image is query and database.

    AP = 1/|P| sum over the positives p in P of (positives at least as similar as p) / (items at least as similar as p).

    Args:
        labels: int64 `[N]`.
        query_in_ranking: the query itself is the first hit and counts as one of its positives (GPR1200's rule), so that an
            image alone in its class has AP 1. False: it is left out, and an image alone in its class is undefined.
    """
    values = _undefined(len(labels))
    members = _members(labels)
    for start, similarities in _blocks(vectors, vectors, block_bytes, on_queries):
        own = np.arange(start, start + len(similarities))
        similarities[np.arange(len(own)), own] = np.inf if query_in_ranking else -np.inf
        for query, row in zip(own.tolist(), similarities, strict=True):
            right = members.get(int(labels[query]))
            if right is None or (len(right) == 1 and not query_in_ranking):
                continue
            answers = right if query_in_ranking else right[right != query]
            values[query] = average_precision(row, answers, len(answers))
    return PerQuery(values)


def recall_at_k(
    vectors: Rows,
    labels: NDArray[np.int64],
    ks: Sequence[int],
    *,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_queries: Progress | None = None,
) -> dict[int, PerQuery]:
    """Whether an image of the same class is among the k nearest, the query itself left out: 1 or 0 for each k.

    The rank of the nearest right image is 1 + (other images at least as similar). An image alone in its class is undefined.

    Args:
        vectors: float32 `[N, D]`.
        labels: int64 `[N]`.
    """
    _check_ks(ks)
    ranks = _undefined(len(labels))
    members = _members(labels)
    for start, similarities in _blocks(vectors, vectors, block_bytes, on_queries):
        own = np.arange(start, start + len(similarities))
        similarities[np.arange(len(own)), own] = -np.inf
        for query, row in zip(own.tolist(), similarities, strict=True):
            right = members.get(int(labels[query]))
            if right is not None and len(right) > 1:
                ranks[query] = rank_of_best(row, right)
    return _hits(ranks, ks)


def revisited_map(
    queries: Rows,
    database: Rows,
    answers: Sequence[Junk],
    *,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_queries: Progress | None = None,
) -> dict[Setting, PerQuery]:
    """Average precision of the revisited Oxford and Paris protocol (Radenović et al., CVPR 2018, section 3.2).

    Easy: easy images are right, hard ones join the junk. Medium: easy and hard are right. Hard: hard are right, easy ones
    join the junk. Junk is taken out of the ranking. AP is the area under the precision-recall curve by trapezoids: for the
    j-th right image (from 0) at rank r (from 0, junk out), the mean of j/r (1 at r = 0) and (j+1)/(r+1), over all right
    images. A query without right images in a setting is undefined there.

    Args:
        answers: one per query.
    """
    if len(answers) != queries.shape[0]:
        raise ValueError(f"{len(answers)} answers for {queries.shape[0]} queries")
    _check_answers(answers, database.shape[0])
    values: dict[Setting, NDArray[np.float64]] = {
        "easy": _undefined(len(answers)),
        "medium": _undefined(len(answers)),
        "hard": _undefined(len(answers)),
    }
    for start, similarities in _blocks(queries, database, block_bytes, on_queries):
        for query, row in enumerate(similarities, start):
            answer = answers[query]
            both = np.concatenate([answer.easy, answer.hard])
            values["easy"][query] = trapezoid_ap(row, answer.easy, np.concatenate([answer.junk, answer.hard]))
            values["medium"][query] = trapezoid_ap(row, both, answer.junk)
            values["hard"][query] = trapezoid_ap(row, answer.hard, np.concatenate([answer.junk, answer.easy]))
    return {setting: PerQuery(found) for setting, found in values.items()}


def weighted_knn(
    train: Rows,
    train_labels: NDArray[np.int64],
    test: Rows,
    test_labels: NDArray[np.int64],
    *,
    k: int = 21,
    temperature: float = 0.1,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_queries: Progress | None = None,
) -> PerQuery:
    """Whether the classes of the k nearest training images, each voting exp(similarity / temperature), name the right one.

    Training images tied for the last places share them: each votes with (places left / number tied) of its weight. A vote
    that ends level is wrong. A class without training images cannot win, so its test images are wrong; `NO_CLASS` images
    do not train, and are no queries.

    Args:
        train, test: float32 `[N, D]` and `[Q, D]`.
        train_labels, test_labels: int64 `[N]` and `[Q]`, of one numbering.
    """
    if k < 1 or not temperature > 0:
        raise ValueError(f"k must be at least 1 and temperature above 0, not {k} and {temperature}")
    teaching = train_labels >= 0
    if not teaching.any():
        raise ValueError("no training image has a class")
    values = _undefined(len(test_labels))
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    k = min(k, int(teaching.sum()))
    for start, similarities in _blocks(test, train, block_bytes, on_queries):
        similarities[:, ~teaching] = -np.inf
        for query, row in enumerate(similarities, start):
            if test_labels[query] < 0:
                continue
            total = votes(row, train_labels, k=k, temperature=temperature, classes=classes)
            values[query] = alone_on_top(total, int(test_labels[query]))
    return PerQuery(values)


def zero_shot(
    images: Rows,
    labels: NDArray[np.int64],
    class_vectors: NDArray[np.float32],
    *,
    repeated: Sequence[int] = (),
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_queries: Progress | None = None,
) -> PerQuery:
    """Whether the nearest class vector is that of the image's class (top-1 accuracy).

    Every class takes part, also one without images. A tie with another class is wrong.

    Args:
        labels: int64 `[N]`.
        class_vectors: `[C, D]`, one per class, as `prompts.class_vectors` makes them.
        repeated: classes that have the vector of an earlier class and leave the win to it, so that their own images are wrong:
            what top-1 by `argmax` does. Without them all classes of one vector are tied, and wrong.
    """
    if labels.max(initial=0) >= len(class_vectors):
        raise ValueError(f"a label is {labels.max()}, but there are {len(class_vectors)} class vectors")
    values = _undefined(len(labels))
    for start, similarities in _blocks(images, class_vectors, block_bytes, on_queries):
        similarities[:, list(repeated)] = -np.inf
        for query, row in enumerate(similarities, start):
            if labels[query] >= 0:
                values[query] = alone_on_top(row, int(labels[query]))
    return PerQuery(values)


def caption_retrieval(
    images: Rows,
    captions: Rows,
    image_of: NDArray[np.int64],
    ks: Sequence[int] = (1, 5, 10),
    *,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_queries: Progress | None = None,
) -> CaptionScores:
    """Recall@k between images and captions, each image with any number of captions of its own.

    Text to image: whether the caption's image is among the k nearest images. Image to text: whether any of the image's
    captions is among the k nearest captions. An image without captions stays in the database of the first, and is
    undefined in the second. A caption that two images share word for word is two captions, tied: each image's copy ranks
    after the other's.

    Args:
        image_of: int64 `[T]`, the row in `images` of each caption.
    """
    _check_ks(ks)
    if len(image_of) != captions.shape[0] or not ((image_of >= 0) & (image_of < images.shape[0])).all():
        raise ValueError("image_of must give, for each caption, a row of images")
    by_text, by_image = _undefined(len(image_of)), _undefined(images.shape[0])
    for start, similarities in _blocks(captions, images, block_bytes, on_queries):
        own = image_of[start : start + len(similarities)]
        mine = similarities[np.arange(len(own)), own]
        by_text[start : start + len(own)] = (similarities >= mine[:, None]).sum(axis=1)
    members = _members(image_of)
    for start, similarities in _blocks(images, captions, block_bytes, on_queries):
        for image, row in enumerate(similarities, start):
            if (right := members.get(image)) is not None:
                by_image[image] = rank_of_best(row, right)
    return CaptionScores(_hits(by_text, ks), _hits(by_image, ks))


def _undefined(count: int) -> NDArray[np.float64]:
    return np.full(count, np.nan)


def _blocks(
    queries: Rows, database: Rows, block_bytes: int, on_queries: Progress | None
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for block in similarity_blocks(queries, database, block_bytes=block_bytes):
        yield block.start, block.values
        if on_queries is not None:
            on_queries(len(block.values))


def _members(labels: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Rows of each label; `NO_CLASS` has none."""
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    groups: Iterable[NDArray[np.int64]] = np.split(order, starts[1:]) if len(order) else ()
    return {int(label): group for label, group in zip(found, groups, strict=True) if label >= 0}


def _hits(ranks: NDArray[np.float64], ks: Sequence[int]) -> dict[int, PerQuery]:
    return {k: PerQuery(np.where(np.isnan(ranks), np.nan, (ranks <= k).astype(np.float64))) for k in ks}


def _check_ks(ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise ValueError(f"k must be at least 1, not {list(ks)}")


def _check_answers(answers: Sequence[Junk], database: int) -> None:
    for number, answer in enumerate(answers):
        rows = np.concatenate([answer.easy, answer.hard, answer.junk])
        if len(rows) and not 0 <= rows.min() <= rows.max() < database:
            raise ValueError(f"query {number}: an answer points outside of the database of {database}")
        if len(np.unique(rows)) != len(rows):
            raise ValueError(f"query {number}: an image stands twice among easy, hard and junk")

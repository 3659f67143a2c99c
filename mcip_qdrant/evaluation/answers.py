"""Figures from what searches answered: lists of the nearest points instead of whole rows of similarities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.evaluation.datasets import NO_CLASS
from mcip_qdrant.evaluation.evaluation import Figure, Shown
from mcip_qdrant.evaluation.ranking import alone_on_top, average_precision, rank_of_best, votes
from mcip_qdrant.evaluation.scores import PerQuery
from mcip_qdrant.evaluation.searches import SAME_SCORE, Answer, Point

NEIGHBOURS: Final = 21
TEMPERATURE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Asked:
    """One query with its answers; `point` is the row of the point that it is or belongs to, None for a text of nobody's.

    `exact` is one long list, with everything that is as similar as its last wanted item. `index` holds an answer for each
    length asked for: HNSW looks at least at as many candidates as are asked for, so the first ten of a hundred are better than
    the ten that an application gets.
    """

    point: int | None
    shown: Shown
    exact: Answer
    index: Mapping[int, Answer]


@dataclass(slots=True)
class Archive:
    """Every point of a collection, with its class: `labels` is int64 `[N]`, an index into `names` or `NO_CLASS`."""

    points: list[Point]
    labels: NDArray[np.int64]
    names: list[str]
    row: dict[str, int] = field(init=False)
    counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.names)).astype(np.int64)
        self.row = {point.id: place for place, point in enumerate(self.points)}

    def labels_of(self, answer: Answer) -> NDArray[np.int64]:
        """The class of each item of an answer; a point written since the listing has none."""
        rows = [self.row.get(one) for one in answer.ids]
        return np.array([NO_CLASS if row is None else self.labels[row] for row in rows], dtype=np.int64)


Judge: TypeAlias = Callable[[Asked, Answer], float]
# Answer, class of each of its items, the query's class, how many other points are of that class.
_Rule: TypeAlias = Callable[[Answer, NDArray[np.int64], int, int], float]


def nearest_found(asked: Asked, answer: Answer, k: int) -> float:
    """Recall@k of an answer against exact search: the share of the k nearest that are among its first k.

    An item within 1e-6 of the k-th is as good as the k-th. Where the collection has fewer points, k is their number.
    """
    near = nearest_ids(asked.exact, k)
    return sum(one in near for one in answer.ids[:k]) / min(k, len(asked.exact.ids))


def nearest_ids(exact: Answer, k: int) -> set[str]:
    """The k nearest by exact search, and whatever is as similar as the k-th."""
    worst = exact.scores[min(k, len(exact.ids)) - 1] - SAME_SCORE
    return {one for one, score in zip(exact.ids, exact.scores, strict=True) if score >= worst}


def image_figures(
    asked: Sequence[Asked], archive: Archive, ks: Sequence[int], depth: int
) -> Iterator[tuple[Figure, Figure]]:
    """(exact, index) of every figure of image queries, the query itself left out of the answers.

    Index recall@k; where there are classes also R@k, mAP@depth (AP cut off there, divided by the right items that can be
    there) and the accuracy of 21 weighted neighbours, of which those without class do not vote. A query alone in its class
    is undefined.

    Both sides are judged by lists of one length. What is tied for the last places of a list belongs to it: it counts as
    wrong answers before a right one for R@k, and shares the places that are left for mAP and votes.
    """
    each = np.arange(len(asked), dtype=np.int64)
    for k in ks:
        yield _both(f"index recall@{k}, images", asked, each, "query", partial(nearest_found, k=k), k)
    if not archive.names:
        return
    labels = np.array([archive.labels[_row(one)] for one in asked], dtype=np.int64)
    rules: list[tuple[str, _Rule, int]] = [(f"R@{k}, images", partial(_among_first, k=k), k) for k in ks]
    rules.append((f"mAP@{depth}, images", partial(_cut_precision, depth=depth), depth))
    rules.append(("k-NN accuracy, images", partial(_vote, classes=len(archive.names)), NEIGHBOURS))
    for name, rule, length in rules:
        yield _both(name, asked, labels, "class", partial(_by_class, archive=archive, rule=rule), length)


def text_figures(asked: Sequence[Asked], archive: Archive, ks: Sequence[int]) -> Iterator[tuple[Figure, Figure]]:
    """(exact, index) of every figure of text queries: index recall@k, and text-to-image R@k of those that are captions."""
    groups = np.array(
        [-1 - place if one.point is None else one.point for place, one in enumerate(asked)], dtype=np.int64
    )
    for k in ks:
        yield _both(f"index recall@{k}, texts", asked, groups, "image", partial(nearest_found, k=k), k)
    if any(one.point is not None for one in asked):
        for k in ks:
            yield _both(f"text-to-image R@{k}", asked, groups, "image", partial(_own_image, archive=archive, k=k), k)


def lengths(ks: Sequence[int], depth: int, *, classes: bool) -> list[int]:
    """How long the index's answers must be for all figures."""
    return sorted({*ks, *((depth, NEIGHBOURS) if classes else ())})


def _both(
    name: str, asked: Sequence[Asked], groups: NDArray[np.int64], by: str, judge: Judge, length: int
) -> tuple[Figure, Figure]:
    exact = [judge(one, _with_ties(one, one.exact, length)) for one in asked]
    index = [judge(one, _with_ties(one, one.index[length], length)) for one in asked]
    return (
        Figure(name, PerQuery(np.array(exact, dtype=np.float64)), groups, by),
        Figure(name, PerQuery(np.array(index, dtype=np.float64)), groups, by),
    )


def _with_ties(asked: Asked, answer: Answer, length: int) -> Answer:
    """The first `length` of an answer, followed by whatever is level with the last of them, as exact search knows it.

    Which of several copies comes last in an answer is chance. With all of them in, an index that answers as exact search does
    is judged as exact search is. Items that are level get one score.
    """
    if len(answer.ids) < length:
        return answer
    scores = dict(zip(asked.exact.ids, asked.exact.scores.tolist(), strict=True))
    kept, last = answer.ids[:length], answer.ids[length - 1]
    if last not in scores:  # it lies beyond the exact list, and so does whatever is level with it
        return Answer(kept, answer.scores[:length], answer.seconds)
    level = {one for one, score in scores.items() if abs(score - scores[last]) <= SAME_SCORE}
    ids = [*kept, *sorted(level.difference(kept))]
    lowest = answer.scores[length - 1]
    found = [lowest if one in level else score for one, score in zip(kept, answer.scores, strict=False)]
    return Answer(ids, np.array([*found, *[lowest] * (len(ids) - length)], dtype=np.float64), answer.seconds)


def _row(one: Asked) -> int:
    if one.point is None:
        raise ValueError("this query belongs to no point")
    return one.point


def _rank(answer: Answer, right: NDArray[np.bool_]) -> float:
    return rank_of_best(answer.scores, np.flatnonzero(right)) if right.any() else np.inf


def _own_image(asked: Asked, answer: Answer, *, archive: Archive, k: int) -> float:
    if asked.point is None:
        return np.nan
    own = archive.points[asked.point].id
    return float(_rank(answer, np.array([one == own for one in answer.ids], dtype=bool)) <= k)


def _by_class(asked: Asked, answer: Answer, *, archive: Archive, rule: _Rule) -> float:
    own = int(archive.labels[_row(asked)])
    others = int(archive.counts[own]) - 1 if own >= 0 else 0
    return rule(answer, archive.labels_of(answer), own, others) if others else np.nan


def _among_first(answer: Answer, labels: NDArray[np.int64], own: int, _others: int, *, k: int) -> float:
    return float(_rank(answer, labels == own) <= k)


def _cut_precision(answer: Answer, labels: NDArray[np.int64], own: int, others: int, *, depth: int) -> float:
    total = min(others, depth)
    whole = _precision(answer.scores, labels == own, total)
    if len(labels) <= depth:
        return whole
    above = answer.scores > answer.scores.min()
    share = (depth - int(above.sum())) / int((~above).sum())
    return share * whole + (1 - share) * _precision(answer.scores[above], labels[above] == own, total)


def _precision(scores: NDArray[np.float64], right: NDArray[np.bool_], total: int) -> float:
    return average_precision(scores, np.flatnonzero(right), total) if right.any() else 0.0


def _vote(answer: Answer, labels: NDArray[np.int64], own: int, _others: int, *, classes: int) -> float:
    if not (labels >= 0).any():
        return 0.0
    # Points without class take their places and vote for nobody: class 0 here.
    found = votes(answer.scores, labels + 1, k=NEIGHBOURS, temperature=TEMPERATURE, classes=classes + 1)
    return alone_on_top(found[1:], own)

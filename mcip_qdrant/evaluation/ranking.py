"""The rules for one query: ranks, average precision and votes from a row of similarities. Ties count against the model.

A row is float `[N]`, one similarity for each item that takes part; `right` holds the places of the right items in it. Items
that do not take part have the similarity -inf. The same rules serve whole databases (`metrics`) and the lists that a
search answers with (`answers`).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_LEVEL: Final = 1e-9
"""Sums of votes no further apart than this, relative to their size, are level: a hundred times what adding them up can round."""


def rank_of_best(row: NDArray[Any], right: NDArray[np.int64]) -> int:
    """1 + the number of wrong items at least as similar as the most similar right one."""
    best = row[right].max()
    return 1 + int((row >= best).sum()) - int((row[right] >= best).sum())


def average_precision(row: NDArray[Any], right: NDArray[np.int64], total: int) -> float:
    """1/total x the sum over right items p of (right items at least as similar as p) / (items at least as similar as p).

    With `total` = number of right items this is scikit-learn's `average_precision_score`. It is more where the row lacks
    some of them, as a search's answer may: those add nothing.
    """
    found, ordered = np.sort(row[right]), np.sort(row)
    among_right = len(found) - np.searchsorted(found, found, side="left")
    among_all = len(ordered) - np.searchsorted(ordered, found, side="left")
    return float(np.sum(among_right / among_all)) / total


def trapezoid_ap(row: NDArray[Any], right: NDArray[np.int64], ignored: NDArray[np.int64]) -> float:
    """Area under the precision-recall curve by trapezoids, with the ignored items out of the ranking; NaN if none is right.

    For the j-th right item (from 0) at rank r (from 0): the mean of j/r (1 at r = 0) and (j+1)/(r+1); then the mean over all.
    """
    if len(right) == 0:
        return float("nan")
    found = np.sort(row[right])[::-1]
    wrong = np.ones(len(row), dtype=bool)
    wrong[right] = wrong[ignored] = False
    others = np.sort(row[wrong])
    position = np.arange(len(found))
    rank = position + len(others) - np.searchsorted(others, found, side="left")
    before = np.divide(position, rank, out=np.ones(len(found)), where=rank > 0)
    return float(np.mean((before + (position + 1) / (rank + 1)) / 2))


def votes(
    row: NDArray[Any], labels: NDArray[np.int64], *, k: int, temperature: float, classes: int
) -> NDArray[np.float64]:
    """Votes of the k most similar items for their classes, exp(similarity / temperature) each: float64 `[classes]`.

    Items tied for the last places share them: each has (places left / number tied) of its vote. The scale of all votes
    together is arbitrary. The order of the items makes no difference, not even by rounding.

    Args:
        labels: int64 `[N]`, the class of each item, 0 or more where the similarity is finite.
    """
    last = np.partition(row, len(row) - k)[len(row) - k] if k < len(row) else row.min()
    near, tied = np.flatnonzero(row > last), np.flatnonzero(row == last)
    voters = np.concatenate([near, tied])
    # Relative to the largest, which changes no decision and cannot overflow.
    weights = np.exp((row[voters].astype(np.float64) - float(row.max())) / temperature)
    weights[len(near) :] *= min(1.0, (k - len(near)) / len(tied))
    # Added up in order of size, or equal votes would round to different sums in different orders.
    order = np.argsort(weights, kind="stable")
    return np.bincount(labels[voters[order]], weights=weights[order], minlength=classes).astype(np.float64)


def alone_on_top(scores: NDArray[Any], right: int) -> float:
    """1 if the right class has the highest score and no other is level with it (within 1e-9 of their size), else 0."""
    if len(scores) == 1:
        return 1.0
    highest = float(np.delete(scores, right).max())
    return float(scores[right] > highest and not math.isclose(scores[right], highest, rel_tol=_LEVEL))

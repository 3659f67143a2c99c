"""Percentile bootstrap intervals for means over queries, and for paired differences of two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.evaluation.scores import PerQuery

RESAMPLES: Final = 2000
LEVEL: Final = 0.95
SEED: Final = 0
_CHUNK: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over queries with its 95 % bootstrap interval; `low` and `high` are NaN where there is one group only."""

    value: float
    low: float
    high: float


def estimate(score: PerQuery, groups: NDArray[np.int64], *, seed: int = SEED) -> Estimate:
    """Mean of a figure, and its interval over groups of queries that were drawn together.

    Queries of one class, or captions of one image, rise and fall together; so whole groups are drawn again, with
    replacement, 2,000 times, and the mean over all their queries is taken (a cluster bootstrap, percentile interval).

    Args:
        groups: int64 `[Q]`, any numbers; a group of its own for each query is the ordinary bootstrap.
    """
    return _interval(score.values[score.defined], groups[score.defined], seed)


def difference(first: PerQuery, second: PerQuery, groups: NDArray[np.int64], *, seed: int = SEED) -> Estimate:
    """Second minus first, paired: the same queries for both, those that both define, drawn together.

    Raises:
        ValueError: not the same number of queries.
    """
    if first.values.shape != second.values.shape:
        raise ValueError(f"{len(first.values)} and {len(second.values)} queries cannot be paired")
    both = first.defined & second.defined
    return _interval(second.values[both] - first.values[both], groups[both], seed)


def _interval(values: NDArray[np.float64], groups: NDArray[np.int64], seed: int) -> Estimate:
    if len(values) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group).astype(np.float64)
    sums = np.bincount(group, weights=values)
    mean = float(values.mean())
    if len(sizes) == 1:
        return Estimate(mean, float("nan"), float("nan"))
    random = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    at_once = max(1, _CHUNK // len(sizes))
    for start in range(0, RESAMPLES, at_once):
        drawn = random.integers(0, len(sizes), size=(min(at_once, RESAMPLES - start), len(sizes)))
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high))

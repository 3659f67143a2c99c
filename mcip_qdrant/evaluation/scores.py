"""What metrics take and give: a value for every query, and the answers of the revisited protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Progress = Callable[[int], object]
"""Called with the number of queries that were just finished."""

Setting = Literal["easy", "medium", "hard"]


@dataclass(frozen=True, slots=True)
class PerQuery:
    """One figure with the value of every query: float64 `[Q]`, 0..1, NaN where a query has no right answer."""

    values: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Mean over the queries that have an answer; NaN if none has."""
        return float(np.nanmean(self.values)) if self.defined.any() else float("nan")

    @property
    def defined(self) -> NDArray[np.bool_]:
        """Which queries have a right answer: bool `[Q]`."""
        return ~np.isnan(self.values)

    @property
    def undefined(self) -> int:
        """How many queries have no right answer."""
        return int((~self.defined).sum())


@dataclass(frozen=True, slots=True)
class Junk:
    """What the revisited protocol says of one query: database rows, int64, that are easy, hard and junk; disjoint."""

    easy: NDArray[np.int64]
    hard: NDArray[np.int64]
    junk: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """Recall at each k: per caption (text to image) and per image (image to text)."""

    text_to_image: Mapping[int, PerQuery]
    image_to_text: Mapping[int, PerQuery]

"""Several unit vectors and their weights -> one unit vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.errors import InvalidQueryError

_Item = TypeVar("_Item")

CANCELLED = 1e-4
"""A sum shorter than this share of all weights together is rounding noise: its direction means nothing."""


def listed(name: str, given: Iterable[_Item]) -> list[_Item]:
    """What a user gave as several things; a generator is run through once.

    Raises:
        InvalidQueryError: one thing, or none.
    """
    if not isinstance(given, Iterable):
        raise InvalidQueryError(f"{name} must be a list, not {type(given).__name__}")
    return list(given)


def checked_weights(weights: Sequence[object]) -> NDArray[np.float64]:
    """Weights as float64 `[N]`, scaled so that the largest is 1 or -1; only their ratios count.

    Raises:
        InvalidQueryError: none at all, one that is not a finite number, or all of them zero.
    """
    if len(weights) == 0:
        raise InvalidQueryError('a mix needs at least one part, such as ("a beach at night", 1.0)')
    try:
        numbers = np.array([float(weight) for weight in weights], dtype=np.float64)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidQueryError(f"the weights of a mix must be numbers, not {list(weights)!r}") from exc
    largest = np.abs(numbers).max()
    if not np.isfinite(numbers).all() or largest == 0:
        raise InvalidQueryError(f"the weights of a mix must be finite and not all zero, not {numbers.tolist()}")
    scaled: NDArray[np.float64] = numbers / largest
    return scaled


def weighted_sum(vectors: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """`v = s / |s|` with `s = sum of w_i * v_i`: unit vectors float32 `[N, D]` and weights `[N]` -> float32 `[D]`, L2 norm 1.

    Raises:
        InvalidQueryError: the parts cancel each other out: `|s| < 1e-4 * sum of |w_i|`.
    """
    if len(vectors) == 1 and weights[0] > 0:
        only: NDArray[np.float32] = vectors[0]
        return only
    total = weights @ vectors.astype(np.float64)
    length = np.linalg.norm(total)
    if length < CANCELLED * np.abs(weights).sum():
        raise InvalidQueryError("the parts of this mix cancel each other out: nothing is left to search for")
    mixed: NDArray[np.float32] = (total / length).astype(np.float32)
    return mixed

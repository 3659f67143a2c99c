"""The formula of mixes, and what has no direction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.mix import CANCELLED, checked_weights, weighted_sum

WEIGHTS = st.lists(st.floats(-100, 100).filter(lambda w: abs(w) > 1e-3), min_size=1, max_size=6)


def directions(count: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(count, 16))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_worked_out_by_hand() -> None:
    x, y = np.eye(2, dtype=np.float32)
    mixed = weighted_sum(np.stack([x, y]), checked_weights([3, -4]))
    np.testing.assert_allclose(mixed, [0.6, -0.8], atol=1e-7)
    assert mixed.dtype == np.float32


@given(WEIGHTS, st.floats(0.01, 100), st.integers(0, 5))
def test_only_ratios_count_and_the_length_is_one(weights: list[float], factor: float, seed: int) -> None:
    vectors = directions(len(weights), seed)
    mixed = weighted_sum(vectors, checked_weights(weights))
    assert np.linalg.norm(mixed.astype(np.float64)) == pytest.approx(1, abs=1e-6)
    again = weighted_sum(vectors, checked_weights([weight * factor for weight in weights]))
    np.testing.assert_allclose(mixed, again, atol=1e-6)
    total = (np.array(weights)[:, None] * vectors.astype(np.float64)).sum(axis=0)
    np.testing.assert_allclose(mixed, total / np.linalg.norm(total), atol=1e-6)


@given(WEIGHTS, st.randoms(use_true_random=False))
def test_the_order_of_parts_does_not_matter(weights: list[float], shuffler: st.DataObject) -> None:
    vectors, order = directions(len(weights)), list(range(len(weights)))
    shuffler.shuffle(order)  # type: ignore[attr-defined]
    mixed = weighted_sum(vectors, checked_weights(weights))
    again = weighted_sum(vectors[order], checked_weights([weights[index] for index in order]))
    np.testing.assert_allclose(mixed, again, atol=1e-6)


def test_one_part_is_itself_and_its_opposite() -> None:
    (vector,) = vectors = directions(1)
    np.testing.assert_array_equal(weighted_sum(vectors, checked_weights([0.3])), vector)
    np.testing.assert_allclose(weighted_sum(vectors, checked_weights([-7])), -vector, atol=1e-6)


@pytest.mark.parametrize("weights", [[1, -1], [1e-300, -1e-300], [1e300, -1e300], [1, 0.5, -1.5]])
def test_what_cancels_out_is_refused(weights: list[float]) -> None:
    vectors = np.repeat(directions(1), len(weights), axis=0)
    with pytest.raises(InvalidQueryError, match="cancel each other out"):
        weighted_sum(vectors, checked_weights(weights))


@given(arrays(np.float64, 3, elements=st.floats(-1, 1)), st.floats(0.1, 10))
def test_the_border_of_cancelling(off: NDArray[np.float64], times: float) -> None:
    """Two opposite parts, the second a little longer: refused below the bound, exact above it."""
    vectors = np.stack([np.eye(3)[0], np.eye(3)[0]]).astype(np.float32)
    surplus = 2 * CANCELLED * times
    if times < 0.9:
        with pytest.raises(InvalidQueryError):
            weighted_sum(vectors, np.array([1.0, -1.0 - surplus]))
    elif times > 1.1:
        np.testing.assert_allclose(weighted_sum(vectors, np.array([1.0, -1.0 - surplus])), [-1, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    "weights", [[float("nan")], [float("inf"), 1], [0], [0.0, -0.0], [1, float("-inf")], [10**400]]
)
def test_weights_that_mean_nothing(weights: list[float]) -> None:
    with pytest.raises(InvalidQueryError, match=r"finite and not all zero|must be numbers"):
        checked_weights(weights)


@pytest.mark.parametrize("weights", [["much"], [None], [1, []]])
def test_weights_that_are_no_numbers(weights: list[object]) -> None:
    with pytest.raises(InvalidQueryError, match="must be numbers"):
        checked_weights(weights)


def test_no_part_at_all() -> None:
    with pytest.raises(InvalidQueryError, match="at least one part"):
        checked_weights([])


def test_the_largest_weight_is_one() -> None:
    np.testing.assert_allclose(checked_weights([1e308, -2e307]), [1, -0.2])
    np.testing.assert_array_equal(checked_weights([-4, 2]), [-1, 0.5])

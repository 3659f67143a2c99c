"""Intervals against scipy's bootstrap, a plain loop over groups, and what they are for: covering the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from mcip_qdrant.evaluation.bootstrap import difference, estimate
from mcip_qdrant.evaluation.scores import PerQuery


def test_ordinary_bootstrap_is_scipys() -> None:
    values = np.random.default_rng(0).beta(2, 1, 400)
    found = estimate(PerQuery(values), np.arange(400))
    peer = scipy.stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", random_state=1)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(peer.confidence_interval.low, abs=0.003)
    assert found.high == pytest.approx(peer.confidence_interval.high, abs=0.003)


def test_paired_difference_is_scipys() -> None:
    random = np.random.default_rng(3)
    first = random.random(300)
    second = np.clip(first + random.normal(0.02, 0.05, 300), 0, 1)
    found = difference(PerQuery(first), PerQuery(second), np.arange(300))
    peer = scipy.stats.bootstrap(
        (first, second),
        lambda a, b, axis: b.mean(axis) - a.mean(axis),
        paired=True,
        n_resamples=9999,
        method="percentile",
        random_state=1,
    )
    assert found.value == pytest.approx((second - first).mean())
    assert found.low == pytest.approx(peer.confidence_interval.low, abs=0.001)
    assert found.high == pytest.approx(peer.confidence_interval.high, abs=0.001)
    assert found.high - found.low < 0.02, "pairing takes the spread between queries out"


def test_groups_are_drawn_whole() -> None:
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(30), random.integers(1, 20, 30))
    values = random.random(30)[groups] * 0.9 + 0.1 * random.random(len(groups))
    found = estimate(PerQuery(values), groups)
    means = []
    for _ in range(4000):
        drawn = random.integers(0, 30, 30)
        means.append(np.concatenate([values[groups == group] for group in drawn]).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.015)
    assert found.high == pytest.approx(high, abs=0.015)
    alone = estimate(PerQuery(values), np.arange(len(values)))
    assert found.high - found.low > 1.5 * (alone.high - alone.low), "queries of one class are no independent evidence"


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly() -> None:
    score, groups = PerQuery(np.random.default_rng(0).random(500)), np.arange(500)
    assert estimate(score, groups) == estimate(score, groups)
    other = estimate(score, groups, seed=1)
    assert other != estimate(score, groups)
    assert other.low == pytest.approx(estimate(score, groups).low, abs=0.01)


def test_undefined_queries_are_left_out_of_both() -> None:
    first, second = PerQuery(np.array([0.0, np.nan, 1.0])), PerQuery(np.array([1.0, 1.0, np.nan]))
    found = difference(first, second, np.arange(3))
    assert found.value == 1.0
    assert math.isnan(found.low), "one query has no spread"
    assert math.isnan(estimate(PerQuery(np.array([np.nan])), np.arange(1)).value)
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(first, PerQuery(np.array([1.0])), np.arange(3))


def test_one_class_has_no_interval() -> None:
    found = estimate(PerQuery(np.array([0.2, 0.4])), np.array([7, 7]))
    assert found.value == pytest.approx(0.3)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_equal_models_differ_by_nothing() -> None:
    score = PerQuery(np.random.default_rng(0).random(50))
    found = difference(score, score, np.arange(50))
    assert (found.value, found.low, found.high) == (0, 0, 0)

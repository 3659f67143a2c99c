"""Figures against independent implementations: scikit-learn, plain loops in float64, and a ranking worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from mcip_qdrant.evaluation.metrics import (
    caption_retrieval,
    full_ranking_map,
    recall_at_k,
    revisited_map,
    weighted_knn,
    zero_shot,
)
from mcip_qdrant.evaluation.scores import Junk


def unit(count: int, width: int = 24, *, seed: int, classes: int = 0) -> tuple[Any, Any]:
    """Random unit vectors; those of one class share a direction. Returns float32 `[N, D]` and labels int64 `[N]`."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes or 1, count)
    centres = np.random.default_rng(99).normal(size=(classes or 1, width))
    vectors = random.normal(size=(count, width)) + 0.8 * centres[labels]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(3))
def test_full_ranking_is_scikit_learns_average_precision(seed: int) -> None:
    vectors, labels = unit(150, seed=seed, classes=12)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    inside = full_ranking_map(vectors, labels).values
    outside = full_ranking_map(vectors, labels, query_in_ranking=False).values
    for query in range(len(labels)):
        right = labels == labels[query]
        scores = exact[query].copy()
        scores[query] = 2
        assert inside[query] == pytest.approx(average_precision_score(right, scores), abs=1e-6)
        others = np.arange(len(labels)) != query
        if right[others].any():
            expected = average_precision_score(right[others], exact[query][others])
            assert outside[query] == pytest.approx(expected, abs=1e-6)
        else:
            assert math.isnan(outside[query])


def test_full_ranking_with_ties_is_scikit_learns_average_precision() -> None:
    random = np.random.default_rng(5)
    # Integer coordinates of one length: cosines are multiples of 1/4 in every precision, and most of them are ties.
    corners = np.array([[a, b, c, d] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1) for d in (-1, 1)]) / 2
    vectors = corners[random.integers(0, 16, 80)].astype(np.float32)
    labels = random.integers(0, 6, 80)
    found = full_ranking_map(vectors, labels, query_in_ranking=False).values
    for query in range(80):
        others = np.arange(80) != query
        scores = (vectors.astype(np.float64) @ vectors[query].astype(np.float64))[others]
        expected = average_precision_score(labels[others] == labels[query], scores)
        assert found[query] == pytest.approx(expected, abs=1e-12)


def test_gpr1200s_formula_by_a_plain_loop() -> None:
    # AP = 1/10 of the sum, over the ten positives in rank order, of hits so far / rank; the query is the first.
    vectors, _ = unit(120, seed=8)
    labels = np.repeat(np.arange(12), 10)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    expected = []
    for query in range(120):
        ranking = [query, *(int(i) for i in np.argsort(-exact[query]) if i != query)]
        hits, total = 0, 0.0
        for rank, item in enumerate(ranking, start=1):
            if labels[item] == labels[query]:
                hits += 1
                total += hits / rank
        expected.append(total / 10)
    found = full_ranking_map(vectors, labels)
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert 0.1 < found.mean < 0.25  # random vectors: the query's own 1/10, and little more


@pytest.mark.parametrize("seed", range(3))
def test_recall_by_brute_force(seed: int) -> None:
    vectors, labels = unit(140, seed=seed, classes=40)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    np.fill_diagonal(exact, -9)
    order = np.argsort(-exact, axis=1)
    for k, found in recall_at_k(vectors, labels, [1, 2, 8, 32]).items():
        expected = [
            float((labels[order[query, :k]] == label).any()) if (labels == label).sum() > 1 else math.nan
            for query, label in enumerate(labels)
        ]
        np.testing.assert_array_equal(found.values, expected)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (21, 0.1), (21, 1.0), (60, 0.05)])
def test_weighted_neighbours_are_scikit_learns(k: int, temperature: float) -> None:
    train, train_labels = unit(300, seed=1, classes=9)
    test, test_labels = unit(120, seed=2, classes=9)
    peer = KNeighborsClassifier(
        n_neighbors=k,
        algorithm="brute",
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    ).fit(train.astype(np.float64), train_labels)
    expected = peer.predict(test.astype(np.float64)) == test_labels
    found = weighted_knn(train, train_labels, test, test_labels, k=k, temperature=temperature)
    np.testing.assert_array_equal(found.values, expected.astype(float))
    assert 0.3 < found.mean < 1


def test_zero_shot_by_brute_force() -> None:
    images, labels = unit(200, seed=3, classes=7)
    classes = np.random.default_rng(99).normal(size=(7, 24))
    classes = (classes / np.linalg.norm(classes, axis=1, keepdims=True)).astype(np.float32)
    expected = (100 * images.astype(np.float64) @ classes.astype(np.float64).T).argmax(axis=1) == labels
    found = zero_shot(images, labels, classes)
    np.testing.assert_array_equal(found.values, expected.astype(float))
    assert 0.5 < found.mean < 1


def test_captions_by_brute_force() -> None:
    images, _ = unit(60, seed=4)
    image_of = np.sort(np.random.default_rng(0).integers(0, 60, 200))
    noise, _ = unit(200, seed=5)
    captions = images[image_of] + 0.9 * noise
    captions = (captions / np.linalg.norm(captions, axis=1, keepdims=True)).astype(np.float32)
    exact = captions.astype(np.float64) @ images.astype(np.float64).T
    found = caption_retrieval(images, captions, image_of, [1, 5, 10])
    for k in (1, 5, 10):
        by_text = [image_of[text] in np.argsort(-exact[text])[:k] for text in range(200)]
        np.testing.assert_array_equal(found.text_to_image[k].values, np.array(by_text, dtype=float))
        by_image = [
            float((image_of[np.argsort(-exact[:, image])[:k]] == image).any()) if image in image_of else math.nan
            for image in range(60)
        ]
        np.testing.assert_array_equal(found.image_to_text[k].values, by_image)
    assert 0.1 < found.text_to_image[1].mean < 1


def test_revisited_protocol_by_hand_on_two_queries() -> None:
    # Ranking by angle from the query at 0: rows 0, 1, 2 … in this order. What the rule of the protocol gives on paper:
    angles = np.radians([1, 2, 3, 4, 5, 6, 7, 8])
    database = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    queries = np.float32([[1, 0], [math.cos(math.radians(9)), math.sin(math.radians(9))]])
    ids = lambda *rows: np.array(rows, dtype=np.int64)  # noqa: E731 - a name for the rows of one answer
    answers = [
        Junk(easy=ids(1, 5), hard=ids(3), junk=ids(0, 4)),
        Junk(easy=ids(), hard=ids(7, 0), junk=ids(6)),
    ]
    found = revisited_map(queries, database, answers)
    # Query 1, medium: without junk the ranking is 1+ 2- 3+ 5+ 6- 7-: right ones at ranks 0, 2, 3.
    medium = ((1 + 1 / 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2) / 3
    # Easy: 3 is out as well: 1+ 2- 5+ 6- 7-: ranks 0, 2.  Hard: 1 and 5 are out: 2- 3+ 6- 7-: rank 1.
    easy = ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    hard = (0 / 1 + 1 / 2) / 2
    # Query 2 sees the database backwards: 7+ 5- 4- 3- 2- 1- 0+: ranks 0 and 6; no easy image, so no easy figure.
    second = ((1 + 1) / 2 + (1 / 6 + 2 / 7) / 2) / 2
    assert found["medium"].values.tolist() == pytest.approx([medium, second])
    assert found["hard"].values.tolist() == pytest.approx([hard, second])
    assert found["easy"].values[0] == pytest.approx(easy)
    assert found["easy"].undefined == 1
    assert found["easy"].mean == pytest.approx(easy)


@pytest.mark.parametrize("seed", range(4))
def test_revisited_protocol_by_a_plain_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    database, _ = unit(90, seed=seed)
    queries, _ = unit(6, seed=seed + 50)
    answers = []
    for _ in range(6):
        rows = random.permutation(90)[:30]
        answers.append(Junk(easy=np.sort(rows[:8]), hard=np.sort(rows[8:17]), junk=np.sort(rows[17:])))
    exact = queries.astype(np.float64) @ database.astype(np.float64).T
    found = revisited_map(queries, database, answers)
    for number, answer in enumerate(answers):
        easy, hard, junk = set(answer.easy.tolist()), set(answer.hard.tolist()), set(answer.junk.tolist())
        settings: list[tuple[Any, set[int], set[int]]] = [
            ("easy", easy, junk | hard),
            ("medium", easy | hard, junk),
            ("hard", hard, junk | easy),
        ]
        for setting, right, ignored in settings:
            ranking = [int(i) for i in np.argsort(-exact[number]) if int(i) not in ignored]
            area, hits, recall, precision = 0.0, 0, 0.0, 1.0
            # The curve point by point: recall moves only at right images; the trapezoid's left side is the precision before.
            for rank, item in enumerate(ranking):
                precision = hits / rank if rank else 1.0
                if item in right:
                    hits += 1
                    step = hits / len(right) - recall
                    recall = hits / len(right)
                    area += step * (precision + hits / (rank + 1)) / 2
            assert found[setting].values[number] == pytest.approx(area, abs=1e-6)

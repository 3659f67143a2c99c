"""Figures from lists of the nearest points, by hand, and equal to those of whole rows where the lists are long enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mcip_qdrant.evaluation.answers import Archive, Asked, image_figures, lengths, nearest_found, text_figures
from mcip_qdrant.evaluation.metrics import caption_retrieval, full_ranking_map, recall_at_k
from mcip_qdrant.evaluation.ranking import alone_on_top, votes
from mcip_qdrant.evaluation.searches import Answer, Point


def answer(pairs: str) -> Answer:
    """`a9 b8`: ids with scores in tenths."""
    ids = [pair[0] for pair in pairs.split()]
    return Answer(ids, np.array([int(pair[1:]) / 10 for pair in pairs.split()]), 0.001)


@pytest.mark.parametrize(
    ("exact", "index", "k", "expected"),
    [
        ("a9 b8 c7 d6", "a9 b8 c7 d6", 3, 1.0),
        ("a9 b8 c7 d6", "b8 a9 d6 c7", 3, 2 / 3),
        ("a9 b8 c8 d8", "a9 d8 x1 y0", 2, 1.0),  # b, c and d are equally good seconds
        ("a9 b8 c7 d6", "a9", 4, 1 / 4),
        ("a9 b8", "b8 a9", 10, 1.0),  # no more than two there
        ("a9 b8", "", 1, 0.0),
    ],
)
def test_recall_against_exact_search(exact: str, index: str, k: int, expected: float) -> None:
    one = Asked(None, "?", answer(exact), {k: answer(index)})
    assert nearest_found(one, one.index[k], k) == pytest.approx(expected)
    assert nearest_found(one, one.exact, k) == 1.0


def test_leaving_out_the_query() -> None:
    assert answer("a9 b8 c7").without("x", 2).ids == ["a", "b"]
    without = answer("a9 b8 c7").without("b", 2)
    assert without.ids == ["a", "c"]
    assert without.scores.tolist() == [0.9, 0.7]


def searched(vectors: Any, query: Any, limit: int) -> Answer:
    scores = (vectors @ query).astype(np.float64)
    order = np.argsort(-scores, kind="stable")[:limit]
    return Answer([str(item) for item in order], scores[order], 0.0)


@pytest.fixture
def world() -> tuple[Any, Any, Archive]:
    random = np.random.default_rng(0)
    labels = random.integers(-1, 9, 80)
    labels[3] = 9  # alone in its class
    vectors = random.normal(size=(80, 16)) + np.random.default_rng(1).normal(size=(11, 16))[labels]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    points = [Point(str(number), "", {}) for number in range(80)]
    return vectors, labels, Archive(points, labels, [f"c{number}" for number in range(10)])


def test_image_figures_of_exact_search_are_those_of_whole_rows(world: tuple[Any, Any, Archive]) -> None:
    vectors, labels, archive = world
    asked = []
    for place in range(80):
        whole = searched(vectors, vectors[place], 80).without(str(place), 80)
        asked.append(Asked(place, "?", whole, dict.fromkeys(lengths([1, 5], 100, classes=True), whole)))
    found = {figure.name: figure.score.values for figure, _ in image_figures(asked, archive, [1, 5], 100)}
    assert (found["index recall@1, images"] == 1).all()
    peer = recall_at_k(vectors, labels, [1, 5])
    np.testing.assert_array_equal(found["R@1, images"], peer[1].values)
    np.testing.assert_array_equal(found["R@5, images"], peer[5].values)
    expected = full_ranking_map(vectors, labels, query_in_ranking=False).values
    np.testing.assert_allclose(found["mAP@100, images"], expected, atol=1e-6)
    for place in range(80):
        row = (vectors @ vectors[place]).astype(np.float64)
        row[place] = -np.inf
        if labels[place] in {-1, 9}:
            assert np.isnan(found["k-NN accuracy, images"][place])
        else:
            near = np.argsort(-row)[:21]
            near = near[labels[near] >= 0]
            counted = votes(row[near], labels[near], k=21, temperature=0.1, classes=10)
            assert found["k-NN accuracy, images"][place] == alone_on_top(counted, int(labels[place]))


def test_text_figures_of_exact_search_are_those_of_whole_rows(world: tuple[Any, Any, Archive]) -> None:
    vectors, _, archive = world
    random = np.random.default_rng(7)
    image_of = random.integers(0, 80, 50)
    texts = vectors[image_of] + 0.3 * random.normal(size=(50, 16))
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32)
    asked = []
    for text, place in zip(texts, image_of, strict=True):
        whole = searched(vectors, text, 30)
        asked.append(Asked(int(place), "?", whole, dict.fromkeys((1, 5), whole)))
    found = {figure.name: figure.score.values for figure, _ in text_figures(asked, archive, [1, 5])}
    peer = caption_retrieval(vectors, texts, image_of, [1, 5]).text_to_image
    for k in (1, 5):
        np.testing.assert_array_equal(found[f"text-to-image R@{k}"], peer[k].values)
        assert 0 < found[f"text-to-image R@{k}"].mean() < 1


def test_texts_of_nobody_have_index_recall_only(world: tuple[Any, Any, Archive]) -> None:
    one = Asked(None, "?", answer("a9 b8"), {1: answer("b8 x1")})
    names = [figure.name for figure, _ in text_figures([one], world[2], [1])]
    assert names == ["index recall@1, texts"]


def test_a_cut_precision_counts_what_can_be_there() -> None:
    archive = Archive([Point(name, "", {}) for name in "abcdq"], np.array([0, 1, 0, 0, 0]), ["x", "y"])
    one = Asked(4, "?", answer("a9 b8 c7 d6"), dict.fromkeys((1, 2, 21), answer("b8 a7 z1")))
    exact, index = next(pair for pair in image_figures([one], archive, [1], 2) if pair[0].name == "mAP@2, images")
    assert exact.score.values[0] == pytest.approx(1 / 2)  # a at rank 1; of three others, two could be there
    assert index.score.values[0] == pytest.approx((1 / 2) / 2)  # a at rank 2


def figures_of(
    exact: str, index: dict[int, str], labels: dict[str, int], depth: int = 2
) -> dict[str, tuple[float, float]]:
    """(exact, index) of each figure for one query `q` of class 0."""
    ids = [*labels, "q"]
    archive = Archive([Point(one, "", {}) for one in ids], np.array([*labels.values(), 0]), ["right", "wrong"])
    one = Asked(len(labels), "?", answer(exact), {length: answer(pairs) for length, pairs in index.items()})
    pairs = image_figures([one], archive, [1, 2], depth)
    return {exact.name: (exact.score.values[0], index.score.values[0]) for exact, index in pairs}


@pytest.mark.parametrize("order", ["abc", "bca", "cab", "cba"])
def test_which_copies_the_index_came_upon_changes_no_figure(order: str) -> None:
    """Of four at 8, one is right; a single one fits into two places."""
    labels = {"x": 0, "a": 0, "b": 1, "c": 1, "d": 1, "e": 0}
    exact = "x9 a8 b8 c8 d8 e7"
    found = figures_of(
        exact, {1: "x9", 2: f"x9 {order[0]}8", 21: f"x9 {order[0]}8 {order[1]}8 {order[2]}8 d8 e7"}, labels
    )
    assert all(one == other for one, other in found.values()), found
    # a has 2 right of 5 at its place, which it shares with three others: (1 + 2/5 / 4) / 2.
    assert found["mAP@2, images"][0] == pytest.approx((1 + 2 / 5 / 4) / 2)
    assert found["R@1, images"] == (1, 1)


def test_copies_of_another_class_count_against_both_sides_alike() -> None:
    found = figures_of("a9 b9 c5", {1: "a9", 2: "a9 b9", 21: "a9 b9 c5"}, {"a": 0, "b": 1, "c": 1})
    assert found["R@1, images"] == (0, 0)
    assert found["R@2, images"] == (1, 1)
    assert found["mAP@2, images"] == (1 / 2, 1 / 2)


def test_what_the_index_lost_before_its_last_item_stays_lost() -> None:
    found = figures_of("a9 b8 c7 d6", {1: "b8", 2: "c7 d6", 21: "c7 d6"}, {"a": 0, "b": 1, "c": 1, "d": 1})
    assert found["index recall@2, images"] == (1, 0)
    assert found["R@1, images"] == (1, 0)
    assert found["R@2, images"] == (1, 0)
    assert found["mAP@2, images"] == (1, 0)


def test_a_cut_precision_of_many_right_copies_is_no_more_than_one() -> None:
    copies = "abcdefgh"
    listed = " ".join(f"{one}9" for one in copies)
    found = figures_of(listed, {1: "a9", 2: "h9 c9", 21: listed}, dict.fromkeys(copies, 0))
    assert found["mAP@2, images"] == (1, 1)

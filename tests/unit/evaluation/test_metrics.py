"""Definitions at the edges: ties, classes of one, empty classes, duplicates, distractors, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcip_qdrant.evaluation.metrics import (
    caption_retrieval,
    full_ranking_map,
    recall_at_k,
    revisited_map,
    weighted_knn,
    zero_shot,
)
from mcip_qdrant.evaluation.ranking import alone_on_top, votes
from mcip_qdrant.evaluation.scores import Junk, PerQuery


def at(*degrees: float) -> Any:
    """Unit vectors in the plane, by angle: similarities are cosines of differences."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def ids(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


def test_full_ranking_by_hand() -> None:
    # From the first: itself, then 10 (wrong), then 20 (right). AP = (1/1 + 2/3) / 2 with itself, 1/2 without.
    vectors, labels = at(0, 10, 20), ids(0, 1, 0)
    assert full_ranking_map(vectors, labels).values[0] == pytest.approx((1 + 2 / 3) / 2)
    assert full_ranking_map(vectors, labels, query_in_ranking=False).values[0] == pytest.approx(1 / 2)


def test_an_image_alone_in_its_class_is_right_with_itself_and_undefined_without() -> None:
    vectors, labels = at(0, 10, 20), ids(0, 1, 0)
    assert full_ranking_map(vectors, labels).values[1] == 1.0
    alone = full_ranking_map(vectors, labels, query_in_ranking=False)
    assert math.isnan(alone.values[1])
    assert alone.undefined == 1
    assert alone.mean == pytest.approx(np.nanmean(alone.values))
    assert math.isnan(recall_at_k(vectors, labels, [1])[1].values[1])


def test_nothing_defined_has_no_mean() -> None:
    assert math.isnan(PerQuery(np.array([np.nan, np.nan])).mean)
    assert PerQuery(np.array([np.nan, 0.5])).mean == 0.5


def test_a_wrong_image_as_similar_as_the_right_one_ranks_before_it() -> None:
    # 10 and -10 degrees are equally far from 0; the second is of the query's class.
    for order in ([0, 10, -10], [0, -10, 10]):
        labels = ids(0, *(0 if angle == -10 else 1 for angle in order[1:]))
        vectors = np.float32([[1, 0], [0.6, 0.8], [0.6, -0.8]])
        vectors = vectors if order[1] == 10 else vectors[[0, 2, 1]]
        assert recall_at_k(vectors, labels, [1, 2])[1].values[0] == 0
        assert recall_at_k(vectors, labels, [1, 2])[2].values[0] == 1
        assert full_ranking_map(vectors, labels, query_in_ranking=False).values[0] == 1 / 2
        assert full_ranking_map(vectors, labels).values[0] == pytest.approx((1 + 2 / 3) / 2)


def test_a_collapsed_model_gets_nothing_for_free() -> None:
    vectors = np.repeat(at(30), 12, axis=0)
    labels = np.repeat(np.arange(4), 3)
    assert recall_at_k(vectors, labels, [1, 9, 10])[9].mean == 0
    assert recall_at_k(vectors, labels, [10])[10].mean == 1
    assert full_ranking_map(vectors, labels, query_in_ranking=False).mean == pytest.approx(2 / 11)
    assert full_ranking_map(vectors, labels).mean == pytest.approx((1 + 2 * 3 / 12) / 3)
    assert weighted_knn(vectors, labels, vectors, labels, k=3).mean == 0
    assert zero_shot(vectors, labels, np.repeat(at(0), 4, axis=0)).mean == 0
    scores = caption_retrieval(vectors, vectors, np.arange(12), [1, 11, 12])
    assert scores.text_to_image[11].mean == scores.image_to_text[11].mean == 0
    assert scores.text_to_image[12].mean == scores.image_to_text[12].mean == 1


def test_a_duplicate_of_the_query_is_an_item_like_others_and_the_query_still_comes_first() -> None:
    vectors, labels = at(0, 0, 90), ids(0, 1, 0)
    assert full_ranking_map(vectors, labels).values[0] == pytest.approx((1 + 2 / 3) / 2)
    assert recall_at_k(vectors, labels, [1])[1].values[0] == 0
    same = ids(0, 0, 1)
    assert recall_at_k(vectors, same, [1])[1].values[0] == 1


def test_distractors_are_found_and_never_right_nor_queries() -> None:
    vectors, labels = at(0, 1, 2, 3), ids(0, -1, 0, -1)
    found = full_ranking_map(vectors, labels, query_in_ranking=False)
    assert found.values[[0, 2]].tolist() == [1 / 2, 1 / 3]  # from 2: 1 and 3 are as near as can be, 0 after both
    assert np.isnan(found.values[[1, 3]]).all()
    assert recall_at_k(vectors, labels, [1])[1].undefined == 2
    voted = weighted_knn(vectors, labels, vectors, labels, k=1)
    assert voted.values[[0, 2]].tolist() == [1, 1]
    assert voted.undefined == 2
    assert zero_shot(vectors, labels, at(0)).undefined == 2


def test_an_empty_class_takes_part_in_zero_shot_and_cannot_win_a_vote() -> None:
    images, labels = at(0, 50), ids(0, 2)
    assert zero_shot(images, labels, at(0, 45, 180)).values.tolist() == [1, 0]
    assert weighted_knn(at(0, 5), ids(0, 0), images, labels, k=1).values.tolist() == [1, 0]


def test_training_images_tied_for_the_last_place_share_it() -> None:
    # Two nearest are of class 0; the third place is shared by two images of class 1 and one of class 0.
    train = np.float32([[1, 0], [1, 0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]])
    labels = ids(0, 1, 1, 1, 0)
    query = at(0)
    # k=3: 1 for each class from the nearest, then 2/3 of the last place against 1/3: class 1.
    assert weighted_knn(train, labels, query, ids(1), k=3).values.tolist() == [1]
    assert weighted_knn(train, labels, query, ids(0), k=3).values.tolist() == [0]
    # k=2: one vote each, level: nobody is right.
    assert weighted_knn(train, labels, query, ids(1), k=2).values.tolist() == [0]
    assert weighted_knn(train, labels, query, ids(0), k=2).values.tolist() == [0]


def test_more_neighbours_than_images_means_all() -> None:
    assert weighted_knn(at(0, 90, 95), ids(0, 1, 1), at(0), ids(0), k=500, temperature=0.001).values.tolist() == [1]


def test_captions_of_two_images_word_for_word() -> None:
    images, captions = at(0, 40), at(0, 0, 40)
    scores = caption_retrieval(images, captions, ids(0, 1, 1), [1])
    # The first image's only caption is also the second's: tied, so each is behind the other's copy.
    assert scores.image_to_text[1].values.tolist() == [0, 1]
    assert scores.text_to_image[1].values.tolist() == [1, 0, 1]


def test_an_image_without_captions_is_a_distractor_for_texts_and_no_query() -> None:
    scores = caption_retrieval(at(0, 1, 90), at(1.2, 90), ids(0, 2), [1, 2])
    assert scores.text_to_image[1].values.tolist() == [0, 1]
    assert scores.text_to_image[2].values.tolist() == [1, 1]
    assert math.isnan(scores.image_to_text[1].values[1])


def test_revisited_protocol_by_hand() -> None:
    # Ranking of the query: a hard, b junk, c wrong, d easy, e wrong.
    database, query = at(1, 2, 3, 4, 5), at(0)
    answer = Junk(easy=ids(3), hard=ids(0), junk=ids(1))
    found = {name: score.values[0] for name, score in revisited_map(query, database, [answer]).items()}
    # Easy: a and b are out; d at rank 1 after c: (0/1 + 1/2) / 2.
    assert found["easy"] == pytest.approx(0.25)
    # Medium: a at rank 0: (1 + 1) / 2; d at rank 2 (a, c before): (1/2 + 2/3) / 2; the mean of both.
    assert found["medium"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    # Hard: b and d are out; a first.
    assert found["hard"] == 1.0


def test_revisited_query_without_answers_in_a_setting_is_undefined_there() -> None:
    found = revisited_map(at(0), at(1, 2), [Junk(easy=ids(1), hard=ids(), junk=ids())])
    assert math.isnan(found["hard"].mean)
    assert found["easy"].mean == found["medium"].mean == pytest.approx(0.25)


def test_revisited_ties_rank_the_wrong_image_first() -> None:
    found = revisited_map(at(0), at(5, 5), [Junk(easy=ids(0), hard=ids(), junk=ids())])
    assert found["easy"].mean == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Junk(easy=ids(0), hard=ids(0), junk=ids()), "stands twice"),
        (Junk(easy=ids(2), hard=ids(), junk=ids()), "outside of the database"),
    ],
)
def test_impossible_answers_are_refused(answer: Junk, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        revisited_map(at(0), at(1, 2), [answer])
    with pytest.raises(ValueError, match="1 answers for 2 queries"):
        revisited_map(at(0, 1), at(1, 2), [answer])


@pytest.mark.parametrize(
    "call",
    [
        lambda: recall_at_k(at(0, 1), ids(0, 0), [0]),
        lambda: recall_at_k(at(0, 1), ids(0, 0), []),
        lambda: weighted_knn(at(0), ids(0), at(0), ids(0), k=0),
        lambda: weighted_knn(at(0), ids(0), at(0), ids(0), temperature=0),
        lambda: weighted_knn(at(0), ids(-1), at(0), ids(0)),
        lambda: zero_shot(at(0), ids(1), at(0)),
        lambda: caption_retrieval(at(0), at(0), ids(1)),
        lambda: caption_retrieval(at(0), at(0), ids(0, 0)),
    ],
)
def test_questions_without_meaning_are_refused(call: Any) -> None:
    with pytest.raises(ValueError, match=r"k must|no training|a label is|image_of must"):
        call()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_order_of_the_database_changes_nothing(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 24))
    seed = data.draw(st.integers(0, 1 << 30))
    random = np.random.default_rng(seed)
    # Few distinct directions, so that ties and duplicates are everywhere.
    vectors = at(*random.integers(0, 6, count) * 30.0)
    labels = random.integers(-1, 3, count)
    order = random.permutation(count)
    for inside in (True, False):
        before = full_ranking_map(vectors, labels, query_in_ranking=inside).values
        after = full_ranking_map(vectors[order], labels[order], query_in_ranking=inside).values
        np.testing.assert_allclose(after, before[order], rtol=1e-12)
    np.testing.assert_array_equal(
        recall_at_k(vectors[order], labels[order], [1, 3])[3].values,
        recall_at_k(vectors, labels, [1, 3])[3].values[order],
    )
    if (labels >= 0).any():
        np.testing.assert_array_equal(
            weighted_knn(vectors[order], labels[order], vectors, labels, k=3).values,
            weighted_knn(vectors, labels, vectors, labels, k=3).values,
        )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2000), st.integers(0, 1 << 30))
def test_block_size_changes_nothing(block_bytes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(17, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = random.integers(0, 5, 17)
    seen: list[int] = []
    cut = full_ranking_map(vectors, labels, block_bytes=block_bytes, on_queries=seen.append)
    np.testing.assert_allclose(cut.values, full_ranking_map(vectors, labels).values, rtol=1e-12)
    assert sum(seen) == 17


def test_a_vote_that_ends_level_is_wrong_in_any_order_of_the_files() -> None:
    """The same five pictures in both classes: their votes are equal, in whatever order they are added up."""
    random = np.random.default_rng(0)
    for _ in range(200):
        made = random.normal(size=(6, 16))
        vectors = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
        train = np.concatenate([vectors[:5], vectors[random.permutation(5)]])
        labels = np.repeat(ids(0, 1), 5)
        for right in (0, 1):
            assert weighted_knn(train, labels, vectors[5:], ids(right)).values[0] == 0


def test_votes_of_different_sizes_with_one_sum_are_level() -> None:
    """One vote of ten against ten of one, each with a rounding error of its own."""
    found = votes(np.array([0.1 * np.log(10), *[0.0] * 10]), ids(0, *[1] * 10), k=11, temperature=0.1, classes=2)
    assert found[0] != found[1]
    assert alone_on_top(found, 0) == alone_on_top(found, 1) == 0
    assert alone_on_top(np.array([1 + 1e-8, 1.0]), 0) == 1

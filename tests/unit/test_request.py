"""What a search may ask, and every question that makes no sense."""

from __future__ import annotations

import itertools
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from mcip_qdrant import InvalidQueryError, Like, Query
from mcip_qdrant.examples import Found, candidates, recommend, resolve
from mcip_qdrant.keys import point_id
from mcip_qdrant.request import checked_vector, whole_number

KINDS: dict[str, Any] = {"text": "a", "image": b"x", "like": "s/a", "mix": [("a", 1)], "vector": [1.0]}


def test_exactly_one_kind() -> None:
    for kind, value in KINDS.items():
        assert getattr(Query(**{kind: value}), kind) is not None
    for one, other in itertools.combinations(KINDS, 2):
        with pytest.raises(InvalidQueryError, match="exactly one of text, image, like, mix and vector"):
            Query(**{one: KINDS[one], other: KINDS[other]})
    with pytest.raises(InvalidQueryError, match="exactly one of"):
        Query()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"limit": 0}, "limit must be at least 1, not 0"),
        ({"limit": -3}, "limit must be at least 1"),
        ({"limit": 2.5}, "limit must be a whole number"),
        ({"limit": "3"}, "limit must be a whole number"),
        ({"offset": -1}, "offset must be at least 0"),
        ({"offset": None}, "offset must be a whole number"),
        ({"score_threshold": float("nan")}, "score_threshold must be a finite number"),
        ({"score_threshold": "high"}, "score_threshold must be a finite number"),
        ({"diverse": 1.1}, "diverse must be"),
        ({"diverse": -0.1}, "diverse must be"),
        ({"diverse": float("nan")}, "diverse must be"),
        ({"diverse": "very"}, "diverse must be"),
        ({"diverse": True, "offset": 1}, "diverse has no offset"),
    ],
)
def test_numbers_that_make_no_sense(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidQueryError, match=words):
        Query(text="a", **wrong)


def test_numbers_that_do() -> None:
    query = Query(text="a", limit=np.int64(3), offset=2, score_threshold=-1, diverse=0)
    assert not query.is_diverse
    assert Query(text="a", diverse=True).is_diverse
    assert Query(text="a", diverse=0.2).is_diverse


def test_a_dict_is_a_query_and_takes_the_limit_of_the_call() -> None:
    assert Query.of({"text": "a"}, limit=7).limit == 7
    assert Query.of({"text": "a", "limit": 3}, limit=7).limit == 3
    assert Query.of(Query(like="s/a"), limit=7).like == Like(positive=["s/a"])
    for wrong in ({"text": "a", "colour": "red"}, {1: 2}, "a", 5, None):
        with pytest.raises(InvalidQueryError, match="a Query or a dict"):
            Query.of(wrong, limit=7)  # type: ignore[arg-type]


def test_a_str_is_a_path_as_an_image_and_words_in_a_mix() -> None:
    assert Query(image="car.jpg").as_mix() == [(Path("car.jpg"), 1.0)]
    assert Query(image=b"..").as_mix() == [(b"..", 1.0)]
    assert Query(text="car.jpg").as_mix() == [("car.jpg", 1.0)]
    assert Query(vector=[1.0]).as_mix() is None
    assert Query(like="a").as_mix() is None


def test_diversity_looks_at_more_candidates_than_hits() -> None:
    def mmr(fetch: int, diverse: bool | float) -> models.Mmr | None:
        return Query(text="a", diverse=diverse).nearest([1.0], fetch=fetch).mmr

    assert mmr(10, False) is None
    assert mmr(10, 0) is None
    assert mmr(1, True) == models.Mmr(diversity=0.5, candidates_limit=50)
    assert mmr(30, 0.3) == models.Mmr(diversity=0.3, candidates_limit=150)
    assert mmr(100_000, 1.0) == models.Mmr(diversity=1, candidates_limit=16_384)


def test_examples_in_every_form() -> None:
    assert Like.of("a") == Like(positive=["a"])
    assert Like.of(["a", "b"]) == Like(positive=["a", "b"])
    assert Like.of(("a",)).negative == ()
    assert Like.of(one for one in "ab") == Like(positive=["a", "b"])
    assert Like.of(Like(positive=(one for one in "ab"), negative=["c"])) == Like(positive=["a", "b"], negative=["c"])  # type: ignore[arg-type]
    number = uuid.uuid4()
    assert Like.of(number) == Like.of([number]) == Like(positive=[str(number)])
    assert Like.of(Like(negative=["a"], strategy="best_score")).strategy == "best_score"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([], "at least one positive"),
        (5, "keys or point ids.*not int"),
        (Path("photos/a.jpg"), "not PosixPath"),
        ([5], "not of int"),
        (Like(), "at least one positive"),
        (Like(negative=["a"]), "best_score or sum_scores"),
        (Like(strategy="best_score"), "at least one"),
        (Like(positive="abc"), "list of keys"),
        (Like(positive=["a"], negative=[3]), "negative examples"),  # type: ignore[list-item]
        ("photos/\ud800.jpg", "half a character"),
        (Like(positive=["a"], negative=["\udcff"]), "half a character"),
        (Like(positive=["a"], strategy="nearest"), "unknown strategy"),  # type: ignore[arg-type]
    ],
)
def test_examples_that_are_none(wrong: Any, words: str) -> None:
    with pytest.raises(InvalidQueryError, match=words):
        Query(like=wrong)


def test_diversity_takes_one_example() -> None:
    assert Query(like="a", diverse=True).is_diverse
    for like in (["a", "b"], Like(positive=["a"], negative=["b"])):
        with pytest.raises(InvalidQueryError, match="one example only"):
            Query(like=like, diverse=True)


def test_keys_ids_and_numbers_are_told_apart() -> None:
    identifier = "6BA7B810-9DAD-11D1-80B4-00C04FD430C8"
    assert candidates(Like(positive=["s/a"], negative=["7"])) == [point_id("s/a"), 7, point_id("7")]
    assert candidates(Like(positive=[identifier])) == [identifier.lower(), point_id(identifier)]
    assert candidates(Like(positive=["1" * 5000])) == [point_id("1" * 5000)]
    assert candidates(Like(positive=["²", str(2**64), "-1"])) == [point_id("²"), point_id(str(2**64)), point_id("-1")]
    known: dict[str | int, Found] = {7: Found(7, None), point_id("s/a"): Found(point_id("s/a"), "f" * 64)}
    assert [one.id for one in resolve(["s/a", "7"], known, "images")] == [point_id("s/a"), 7]
    with pytest.raises(InvalidQueryError, match="'images' has no image with key or id 's/b'"):
        resolve(["s/a", "s/b"], known, "images")
    query = recommend(Like(positive=["7"], strategy="sum_scores"), [Found(7, None)], [])
    assert query.recommend.positive == [7]
    assert query.recommend.strategy == models.RecommendStrategy.SUM_SCORES


def test_whole_numbers() -> None:
    assert whole_number("limit", np.uint8(5), least=1) == 5
    with pytest.raises(InvalidQueryError, match="limit"):
        whole_number("limit", None, least=1)


@pytest.mark.parametrize(
    "vector",
    [
        [1.0, float("nan"), 0.0],
        [1.0, float("inf"), 0.0],
        [1e39, 0.0, 0.0],
        [10**400, 0.0, 0.0],
        [1.0, 0.0],
        [[1.0, 0.0, 0.0]],
        "abc",
        [None, 1, 2],
        ["a", "b", "c"],
        5.0,
        {},
        [0.0, 0.0, 0.0],
    ],
)
def test_vectors_that_are_none(vector: Any) -> None:
    with pytest.raises(InvalidQueryError, match="vector"):
        checked_vector(vector, 3)


def test_vectors_that_are() -> None:
    for vector in ([1, 2, 3], (1.0, 2.0, 3.0), np.array([1, 2, 3], np.float64)):
        found = checked_vector(vector, 3)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.array([1, 2, 3]) / 14**0.5, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-320, 1e-30, 1.0, 1e38, 3.4e38])
def test_only_the_direction_of_a_vector_counts(size: float) -> None:
    np.testing.assert_allclose(checked_vector([size, 0, -size], 3), [0.5**0.5, 0, -(0.5**0.5)], rtol=1e-6)

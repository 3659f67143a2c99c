"""Copies count once: pages, limits and groups, against the plain way of doing it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models

from mcip_qdrant import InvalidQueryError, Query
from mcip_qdrant.answer import Answer, distinct, group_hits, hit_of

NEAREST = models.NearestQuery(nearest=[1.0])


def point(number: int, digest: str | None) -> models.ScoredPoint:
    payload = {"key": f"s/{number}"} | ({} if digest is None else {"sha256": digest})
    return models.ScoredPoint(id=number, version=0, score=1 - number / 1000, payload=payload)


def ask(points: list[models.ScoredPoint], query: Query, *, examples: tuple[str, ...] = ()) -> tuple[list[str], int]:
    """Ids that come back, and how many requests that took; Qdrant is a list in the right order."""
    answer = Answer(query, NEAREST, True, examples, Answer.expected(query, collapse=True))
    for rounds in range(1, 20):
        request = answer.request()
        assert request.offset == 0
        if answer.complete(points[: request.limit]):
            return [hit.id for hit in answer.hits()], rounds
    raise AssertionError("never complete")


@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", None]), max_size=200),
    st.integers(1, 30),
    st.integers(0, 30),
    st.sets(st.sampled_from(["a", "b"])),
)
def test_pages_are_cuts_of_one_list_without_copies(
    digests: list[str | None], limit: int, offset: int, examples: set[str]
) -> None:
    points = [point(number, digest) for number, digest in enumerate(digests)]
    plain, seen = [], set(examples)
    for number, digest in enumerate(digests):
        if digest is None or digest not in seen:
            plain.append(str(number))
            seen.add(digest or "")
    found, _ = ask(points, Query(text="a", limit=limit, offset=offset), examples=tuple(examples))
    assert found == plain[offset : offset + limit]


def test_an_archive_without_copies_costs_one_request() -> None:
    points = [point(number, str(number)) for number in range(1000)]
    found, rounds = ask(points, Query(text="a", limit=10))
    assert (len(found), rounds) == (10, 1)
    assert ask(points, Query(text="a", limit=100, offset=500))[1] == 1


def test_one_image_copied_thousands_of_times_leaves_room_for_others() -> None:
    points = [point(number, "same") for number in range(4000)] + [point(4000 + n, str(n)) for n in range(20)]
    found, rounds = ask(points, Query(text="a", limit=5))
    assert found == ["0", "4000", "4001", "4002", "4003"]
    assert rounds == 6
    endless = [point(number, "same") for number in range(30_000)]
    assert ask(endless, Query(text="a", limit=5)) == (["0"], 7)


def test_without_collapsing_qdrant_pages() -> None:
    query = Query(text="a", limit=3, offset=4)
    answer = Answer(query, NEAREST, False, (), Answer.expected(query, collapse=False))
    request = answer.request()
    assert (request.limit, request.offset) == (3, 4)
    assert answer.complete([point(n, "same") for n in range(3)])
    assert [hit.id for hit in answer.hits()] == ["0", "1", "2"]


def test_digests_of_other_kinds_are_left_alone() -> None:
    odd = [
        models.ScoredPoint(id=n, version=0, score=1, payload={"sha256": value})
        for n, value in enumerate([5, 5, [], []])
    ]
    assert distinct(odd) == odd
    bare = models.ScoredPoint(id=1, version=0, score=1)
    assert distinct([bare, bare]) == [bare, bare]


def test_groups_lose_their_own_copies_only() -> None:
    groups = [
        models.PointGroup(id="x", hits=[point(1, "a"), point(2, "a"), point(3, "b"), point(4, "c")]),
        models.PointGroup(id=7, hits=[point(5, "a"), point(6, "d")]),
    ]
    hits = group_hits(groups, 2, {"d"}, collapse=True)
    assert [(hit.group, hit.id) for hit in hits] == [("x", "1"), ("x", "3"), (7, "5")]
    assert [hit.id for hit in group_hits(groups, 2, (), collapse=False)] == ["1", "2", "5", "6"]


@pytest.mark.parametrize(("wrong", "words"), [({"filter": 3}, "filter"), ({"search_params": "fast"}, "params")])
def test_what_qdrant_does_not_take(wrong: dict[str, Any], words: str) -> None:
    query = Query(text="a", limit=1, **wrong)
    with pytest.raises(InvalidQueryError, match=f"{words} is not what Qdrant takes"):
        Answer(query, NEAREST, True, (), 1).request()


def test_a_point_without_uri_has_none() -> None:
    for payload in (None, {}, {"uri": None}):
        assert hit_of(models.ScoredPoint(id=7, version=0, score=1, payload=payload)).uri == ""


def test_vectors_come_as_arrays() -> None:
    found = models.ScoredPoint(id="7", version=0, score=1, payload={"uri": "file:///a"}, vector=[1.0, 2.0])
    query = Query(text="a", limit=1, with_vectors=True)
    answer = Answer(query, NEAREST, True, (), 11)
    assert answer.request().with_vector is True
    answer.complete([found])
    (hit,) = answer.hits()
    assert hit.vector is not None
    assert hit.vector.dtype == "float32"
    assert hit.vector.tolist() == [1, 2]
    assert hit.uri == "file:///a"

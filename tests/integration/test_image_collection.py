"""`ImageCollection` in local mode, over HTTP, behind an alias, and over gRPC where `QDRANT_URL` names a server: against numpy."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import COPIES, PHOTOS, Archive, query_for, small_archive
from conftest import Exported
from qdrant_client import QdrantClient, models
from services import QdrantService, qdrant_server

from mcip_qdrant import (
    FacetValue,
    Hits,
    ImageCollection,
    InvalidQueryError,
    Like,
    Query,
    QueryEncoder,
    SpaceMismatchError,
    TextCutWarning,
    point_id,
)
from mcip_qdrant.session import Session

ALL = PHOTOS + COPIES


@pytest.fixture(scope="module")
def encoder(clip: Exported) -> Iterator[QueryEncoder]:
    with QueryEncoder.open(clip.folder, device="cpu") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, encoder: QueryEncoder) -> Archive:
    return small_archive(tmp_path_factory.mktemp("s"), encoder)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantService]:
    with qdrant_server(tmp_path_factory.mktemp("qdrant")) as running:
        yield running


def real_qdrant(**options: Any) -> QdrantClient:
    url = os.environ.get("QDRANT_URL")
    if not url:
        pytest.skip("QDRANT_URL is not set: a Qdrant server over REST and gRPC is NOT CHECKED")
    return QdrantClient(url=url, timeout=20, **options)


def connect(kind: str, request: pytest.FixtureRequest) -> QdrantClient:
    if kind == "local":
        return QdrantClient(":memory:")
    if kind in {"http", "alias"}:
        url = request.getfixturevalue("service").url
        return QdrantClient(url=url, timeout=20, check_compatibility=False)
    return real_qdrant(prefer_grpc=kind == "real-grpc")


@pytest.fixture(scope="module", params=["local", "http", "alias", "real-rest", "real-grpc"])
def images(request: pytest.FixtureRequest, archive: Archive, encoder: QueryEncoder) -> Iterator[ImageCollection]:
    client = connect(request.param, request)
    name = alias = f"images {uuid.uuid4().hex}"
    archive.load(client, name, encoder)
    if request.param == "alias":
        alias = f"alias {uuid.uuid4().hex}"
        create = models.CreateAlias(collection_name=name, alias_name=alias)
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
    yield ImageCollection(client, alias, encoder, roots={"s": archive.folder})
    client.delete_collection(name)
    client.close()


def keys(hits: Hits) -> list[str]:
    return [hit.key for hit in hits]


def assert_ranked(archive: Archive, hits: Hits, expected: list[str], query: Any) -> None:
    """The expected images in the expected order, by digest because copies are equal; and the scores are cosines."""
    assert archive.digests(keys(hits)) == archive.digests(expected)
    scores = [float(archive.vector(hit.key) @ np.asarray(query, np.float64)) for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=2e-6)
    assert scores == sorted(scores, reverse=True) or np.ptp(scores) < 1e-6


def test_every_kind_of_query_ranks_as_numpy_does(images: ImageCollection, archive: Archive) -> None:
    picture = archive.folder / "photo-0010.jpg"
    mix: list[Any] = [("brick wall", 1.0), (picture, 0.7), ("people", -0.4)]
    encoder = images.encoder
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"text": "brick wall"}, encoder.text("brick wall")),
        ({"image": picture}, encoder.image(picture)),
        ({"image": str(picture)}, encoder.image(picture)),
        ({"image": picture.read_bytes()}, encoder.image(picture)),
        ({"mix": mix}, encoder.mix(*mix)),
        ({"vector": encoder.text("sea")}, encoder.text("sea")),
        ({"vector": encoder.text("sea").tolist()}, encoder.text("sea")),
        ({"vector": encoder.text("sea").astype(np.float64) * 1e38}, encoder.text("sea")),
    ]
    for query, vector in cases:
        hits = images.search(**query, limit=ALL)
        assert len(hits) == PHOTOS
        assert_ranked(archive, hits, archive.ranked(vector), vector)
        assert hits.roots == {"s": archive.folder}
    best = images.search(image=picture, limit=1)[0]
    assert (best.key, best.id) == ("s/photo-0010.jpg", point_id("s/photo-0010.jpg"))
    assert best.uri == archive.payloads[archive.keys.index(best.key)]["uri"]
    assert best.payload == archive.payloads[archive.keys.index(best.key)]
    assert best.vector is None


def test_copies_are_one_hit_unless_asked_for(images: ImageCollection, archive: Archive) -> None:
    picture = archive.folder / "photo-0003.jpg"
    assert len(images.search(image=picture, limit=ALL)) == PHOTOS
    both = images.search(image=picture, limit=2, collapse_duplicates=False)
    assert sorted(keys(both)) == ["s/copy-photo-0003.jpg", "s/photo-0003.jpg"]
    assert len(images.search(image=picture, limit=ALL, collapse_duplicates=False)) == ALL
    assert images.count() == ALL


def test_pages_follow_each_other(images: ImageCollection, archive: Archive) -> None:
    whole = images.search(text="a wall", limit=PHOTOS)
    pages = [hit for start in range(0, PHOTOS + 5, 5) for hit in images.search(text="a wall", limit=5, offset=start)]
    assert archive.digests([hit.key for hit in pages]) == archive.digests(keys(whole))
    assert images.search(text="a wall", offset=PHOTOS) == []
    plain = [
        hit
        for start in (0, 16)
        for hit in images.search(text="a wall", limit=16, offset=start, collapse_duplicates=False)
    ]
    every = archive.ranked(images.encoder.text("a wall"), copies=True)
    assert archive.digests([hit.key for hit in plain]) == archive.digests(every)


def test_like_by_key_and_by_id(images: ImageCollection, archive: Archive) -> None:
    key = "s/photo-0012.jpg"
    expected = archive.ranked(archive.vector(key), without=(key,))
    number = uuid.UUID(point_id(key))
    for example in (key, point_id(key), point_id(key).upper(), [key], number, Like(positive=(one for one in [number]))):  # type: ignore[arg-type]
        hits = images.search(like=example, limit=ALL)
        assert_ranked(archive, hits, expected, archive.vector(key))


def test_like_leaves_copies_of_the_example_out_too(images: ImageCollection) -> None:
    hits = images.search(like="s/photo-0003.jpg", limit=ALL)
    assert len(hits) == PHOTOS - 1
    assert "s/copy-photo-0003.jpg" not in keys(hits)
    first = images.search(like="s/photo-0003.jpg", limit=1, collapse_duplicates=False)[0]
    assert (first.key, round(first.score, 5)) == ("s/copy-photo-0003.jpg", 1.0)


def test_examples_to_be_near_to_and_far_from(images: ImageCollection, archive: Archive) -> None:
    near, far = ("s/photo-0012.jpg", "s/photo-0015.jpg"), ("s/photo-0020.jpg",)
    good = np.mean([archive.vector(key) for key in near], axis=0)
    wanted = 2 * good - archive.vector(far[0])
    wanted /= np.linalg.norm(wanted)
    hits = images.search(like=Like(positive=near, negative=[point_id(far[0])]), limit=ALL)
    assert_ranked(archive, hits, archive.ranked(wanted, without=(*near, *far)), wanted)
    away = images.search(like=Like(negative=["s/photo-0012.jpg"], strategy="best_score"), limit=ALL)
    nearest = archive.ranked(archive.vector("s/photo-0012.jpg"), without=("s/photo-0012.jpg",))
    assert archive.digests(keys(away)) == archive.digests(nearest[::-1])


def test_unknown_examples_are_named(images: ImageCollection) -> None:
    for like in ("s/nowhere.jpg", str(uuid.uuid4()), ["s/photo-0001.jpg", "nowhere"], "7"):
        with pytest.raises(InvalidQueryError, match="has no image with key or id"):
            images.search(like=like)


def _mmr(archive: Archive, query: Any, diversity: float, candidates: int, limit: int) -> list[str]:
    """Maximal marginal relevance as Qdrant describes it."""
    vectors = archive.vectors.astype(np.float64)
    relevance = vectors @ np.asarray(query, np.float64)
    pending = list(np.argsort(-relevance)[:candidates])
    chosen = [pending.pop(0)]
    while pending and len(chosen) < limit:
        scores = [
            (1 - diversity) * relevance[p] - diversity * max(vectors[p] @ vectors[c] for c in chosen) for p in pending
        ]
        chosen.append(pending.pop(int(np.argmax(scores))))
    return [archive.keys[row] for row in chosen]


def test_diverse(images: ImageCollection, archive: Archive) -> None:
    # Not a picture of the archive by itself: next to it, every other one would be as relevant as it is redundant.
    mix: list[Any] = [(archive.folder / "photo-0011.jpg", 1.0), ("a wall", 0.8)]
    vector = images.encoder.mix(*mix)
    plain = images.search(mix=mix, limit=6)
    for diverse, diversity in ((True, 0.5), (0.8, 0.8)):
        hits = images.search(mix=mix, limit=6, diverse=diverse)
        expected = dict.fromkeys(archive.digests(_mmr(archive, vector, diversity, 80, 16)))
        assert archive.digests(keys(hits)) == list(expected)[:6]
        assert archive.digests(keys(hits)) != archive.digests(keys(plain))
    undiverse = images.search(mix=mix, limit=6, diverse=0)
    assert archive.digests(keys(undiverse)) == archive.digests(keys(plain))
    near = images.search(like="s/photo-0011.jpg", limit=4, diverse=0.7)
    assert "s/photo-0011.jpg" not in keys(near)
    nearest = images.search(like="s/photo-0011.jpg", limit=1)
    assert archive.digests(keys(near))[0] == archive.digests(keys(nearest))[0]


@pytest.fixture(scope="module")
def crowded(images: ImageCollection, archive: Archive) -> Iterator[ImageCollection]:
    """The archive, and its first two photographs another 150 and 30 times; `kind` is the same everywhere."""
    rows = [
        *range(ALL),
        *([archive.keys.index("s/photo-0001.jpg")] * 150),
        *([archive.keys.index("s/photo-0002.jpg")] * 30),
    ]
    keys = [*archive.keys, *(f"s/again-{number:03}.jpg" for number in range(len(rows) - ALL))]
    payloads = [archive.payloads[row] | {"key": key, "kind": "photo"} for key, row in zip(keys, rows, strict=True)]
    client, name = images._guard._store.client, f"crowded {uuid.uuid4().hex}"
    Archive(archive.folder, keys, archive.vectors[rows], payloads).load(client, name, images.encoder)
    yield ImageCollection(client, name, images.encoder)
    client.delete_collection(name)


@pytest.mark.parametrize("diverse", [0.05, 0.3, True])
def test_copies_do_not_take_the_places_of_diverse_images(
    crowded: ImageCollection, archive: Archive, diverse: bool | float
) -> None:
    picture = archive.folder / "photo-0001.jpg"
    found = archive.digest("s/photo-0001.jpg")
    hits = crowded.search(image=picture, diverse=diverse, limit=6)
    digests = [hit.payload["sha256"] for hit in hits]
    assert len(digests) == len(set(digests)) == 6
    assert digests[0] == found
    near = crowded.search(like="s/photo-0001.jpg", diverse=diverse, limit=6)
    digests = [hit.payload["sha256"] for hit in near]
    assert len(digests) == len(set(digests)) == 6
    assert found not in digests
    within = crowded.search(image=picture, diverse=diverse, limit=ALL, filter=query_for("year", 2001))
    years = {archive.digest(key) for key in archive.keys if archive.payloads[archive.keys.index(key)]["year"] == 2001}
    assert {hit.payload["sha256"] for hit in within} == years
    together = crowded.search_many([{"text": "a wall"}, {"image": picture, "diverse": diverse, "limit": 6}], limit=3)
    assert [hit.payload["sha256"] for hit in together[1]] == [hit.payload["sha256"] for hit in hits]


def test_copies_do_not_take_the_places_within_groups(crowded: ImageCollection, archive: Archive) -> None:
    picture, key = archive.folder / "photo-0001.jpg", "s/photo-0001.jpg"
    (members,) = crowded.search(image=picture, group_by="kind", group_size=4).groups().values()
    ranked = archive.ranked(archive.vector(key))
    assert [hit.payload["sha256"] for hit in members] == archive.digests(ranked[:4])
    (members,) = crowded.search(like=key, group_by="kind", group_size=4).groups().values()
    assert [hit.payload["sha256"] for hit in members] == archive.digests(
        archive.ranked(archive.vector(key), without=(key,))[:4]
    )
    # A group of nothing but the example does not count as one.
    (other,) = crowded.search(like=key, group_by="sha256", group_size=1, limit=1)
    assert other.payload["sha256"] != archive.digest(key)


def test_filters_thresholds_and_vectors(images: ImageCollection, archive: Archive) -> None:
    vector = images.encoder.text("a wall")
    hits = images.search(text="a wall", filter=query_for("year", 2002), limit=ALL, with_vectors=True)
    assert {hit.payload["year"] for hit in hits} == {2002}
    assert {archive.digest(key) for key in keys(hits)} == {
        one["sha256"] for one in archive.payloads if one["year"] == 2002
    }
    for hit in hits:
        assert hit.vector is not None
        np.testing.assert_allclose(hit.vector, archive.vector(hit.key), atol=1e-6)
    scores = sorted((float(archive.vector(key) @ vector) for key in archive.ranked(vector)), reverse=True)
    bound = (scores[4] + scores[5]) / 2
    assert len(images.search(text="a wall", score_threshold=bound, limit=ALL)) == 5
    assert images.search(text="a wall", score_threshold=1.5) == []
    for nothing in (query_for("nowhere", "x"), query_for("year", 1800), query_for("tags.deep", 1)):
        assert images.search(text="a wall", filter=nothing) == []
        assert images.count(nothing) == 0


@pytest.mark.filterwarnings("ignore:Local mode performs exact")
def test_search_params_are_passed_on(images: ImageCollection, archive: Archive) -> None:
    exact = images.search(text="sea", search_params=models.SearchParams(exact=True, hnsw_ef=16), limit=5)
    assert archive.digests(keys(exact)) == archive.digests(archive.ranked(images.encoder.text("sea"))[:5])


def test_groups(images: ImageCollection, archive: Archive) -> None:
    vector = images.encoder.text("a wall")
    hits = images.search(text="a wall", group_by="year", limit=3, group_size=2)
    groups = hits.groups()
    assert len(groups) == 3
    ranked = archive.ranked(vector)
    for year, members in groups.items():
        assert {hit.group for hit in members} == {year}
        rows = [
            key
            for key in archive.ranked(vector, copies=True)
            if archive.payloads[archive.keys.index(key)]["year"] == year
        ]
        expected = list(dict.fromkeys(archive.digests(rows)))[:2]
        assert archive.digests(keys(members)) == expected
    assert archive.digests(keys(hits))[0] == archive.digests(ranked)[0]
    best = [members[0].score for members in groups.values()]
    assert best == sorted(best, reverse=True)
    tagged = images.search(like="s/photo-0012.jpg", group_by="tags", group_size=ALL, limit=9)
    assert set(tagged.groups()) == {"all", "tag-0", "tag-1", "tag-2"}
    assert "s/photo-0012.jpg" not in keys(tagged)
    assert images.search(text="a wall", group_by="nowhere") == []
    for wrong in ({"offset": 1}, {"diverse": True}, {"group_size": 0}, {"group_size": 1.5}):
        with pytest.raises(InvalidQueryError):
            images.search(text="a", group_by="year", **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidQueryError, match="group_by must be"):
        images.search(text="a", group_by="")


def test_counts_and_facets(images: ImageCollection, archive: Archive) -> None:
    years = [payload["year"] for payload in archive.payloads]
    assert images.count(query_for("year", 2001)) == years.count(2001)
    assert {one.value: one.count for one in images.facets("year")} == {year: years.count(year) for year in set(years)}
    tags = images.facets("tags")
    assert tags[0] == FacetValue("all", ALL - ALL // 4)
    assert [one.count for one in tags] == sorted((one.count for one in tags), reverse=True)
    assert len(images.facets("tags", limit=2)) == 2
    assert {one.value for one in images.facets("tags", filter=query_for("year", 2001))} <= {one.value for one in tags}
    for wrong in (lambda: images.facets("tags", limit=0), lambda: images.facets(""), lambda: images.count("year")):
        with pytest.raises(InvalidQueryError):
            wrong()
    if images._guard._store.embedded:
        assert images.facets("nowhere") == []
    else:
        with pytest.raises(
            InvalidQueryError, match=r"'nowhere'.*no payload index.*create_payload_index.*--index nowhere"
        ):
            images.facets("nowhere")


def test_many_searches_are_one_batch_each_way(
    images: ImageCollection, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = archive.folder / "photo-0009.jpg"
    queries: list[Query | dict[str, Any]] = [
        {"text": "a wall"},
        Query(image=picture, limit=3, filter=query_for("year", 2001)),
        {"like": ["s/photo-0012.jpg"], "offset": 2},
        {"mix": [("sea", 1), (picture, 0.5)], "with_vectors": True},
        {"vector": images.encoder.text("sea"), "diverse": True},
        {"like": Like(positive=["s/photo-0013.jpg"], negative=["s/photo-0014.jpg"])},
        Query(text="nothing of it", score_threshold=1.5),
    ]
    options = ("text", "image", "filter", "score_threshold", "limit")
    alone = [
        images.search(
            **{
                "limit": 7,
                **(one if isinstance(one, dict) else {n: v for n in options if (v := getattr(one, n)) is not None}),
            }
        )
        for one in queries
    ]
    ran: list[int] = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, batch: (ran.append(len(batch)), run(self, batch))[1])
    client, asked = images._guard._store.client, []
    for name in ("query_batch_points", "retrieve", "query_points"):
        method = getattr(client, name)
        monkeypatch.setattr(client, name, lambda *a, _n=name, _m=method, **o: (asked.append(_n), _m(*a, **o))[1])
    together = images.search_many(queries, limit=7)
    assert ran == [3, 2]
    assert [one for one in asked if one != "query_points"] == ["retrieve", "query_batch_points"]
    assert [len(one) for one in together] == [7, 3, 7, 7, 7, 7, 0]
    for ours, single in zip(together, alone, strict=True):
        assert archive.digests(keys(ours)) == archive.digests(keys(single))
    assert together[3][0].vector is not None
    assert images.search_many([]) == []


def test_a_burst_of_64_searches_is_one_batch(images: ImageCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, batch: (ran.append(len(batch)), run(self, batch))[1])
    answers = images.search_many([{"text": f"query {number}"} for number in range(64)], limit=2)
    assert ran == [64]
    assert [len(hits) for hits in answers] == [2] * 64


def test_batches_that_make_no_sense(images: ImageCollection) -> None:
    for wrong in (None, 5, "text", {"text": "a"}, [{"text": "a", "colour": 1}], [{"text": "a", "like": "b"}], [5]):
        with pytest.raises(InvalidQueryError):
            images.search_many(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidQueryError, match="limit"):
        images.search_many([{"text": "a"}], limit=0)


def test_queries_that_make_no_sense(images: ImageCollection) -> None:
    wrong: list[dict[str, Any]] = [
        {},
        {"text": "a", "image": b"x"},
        {"text": ""},
        {"text": "a", "limit": -1},
        {"text": "a", "limit": None},
        {"like": 5},
        {"like": Path("photo.jpg")},
        {"like": "1" * 5000},
        {"text": "a", "offset": -1},
        {"vector": [float("nan")] * 32},
        {"vector": [0.0] * 32},
        {"vector": [1.0] * 31},
        {"text": "a", "filter": "year=2001"},
        {"text": "a", "filter": {"must": 3}},
        {"text": "a", "search_params": 7},
        {"mix": []},
        {"like": []},
    ]
    for query in wrong:
        with pytest.raises(InvalidQueryError):
            images.search(**query)


def test_a_text_that_is_too_long_is_answered_with_a_warning(images: ImageCollection) -> None:
    with pytest.warns(TextCutWarning) as told:
        assert images.search(text="wall " * 20_000, limit=1)
    assert told[0].filename == __file__


def test_another_model_is_refused(images: ImageCollection, other_clip: Exported) -> None:
    client = images._guard._store.client
    with QueryEncoder.open(other_clip.folder, device="cpu") as other:
        wrong = ImageCollection(client, images.name, other)
        for use in (lambda: wrong.search(text="a"), wrong.count, lambda: wrong.facets("year")):
            with pytest.raises(
                SpaceMismatchError, match=r"holds vectors of tiny-clip.*bundle is other-clip.*Use the bundle"
            ):
                use()
        assert other._texts._made is None  # refused before a graph was loaded


def test_200_threads_get_their_own_answers(images: ImageCollection, archive: Archive) -> None:
    """An index skew would give one user another's hits."""
    wanted = [archive.keys[number % ALL] for number in range(200)]
    with ThreadPoolExecutor(200) as pool:
        hits = list(pool.map(lambda key: images.search(image=archive.folder / Path(key).name, limit=1), wanted))
    assert archive.digests([one[0].key for one in hits]) == archive.digests(wanted)

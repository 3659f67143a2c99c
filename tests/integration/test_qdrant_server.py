"""The tests' Qdrant server does what Qdrant does: against qdrant-client's local mode, and against a real server if there is one.

`QDRANT_URL=http://127.0.0.1:6333 pytest tests/integration/test_qdrant_server.py` runs the same bodies against that server.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.common.version_check import is_compatible
from qdrant_client.http.exceptions import UnexpectedResponse
from services import QdrantService, qdrant_server

DIMENSION = 8
IDS: list[int | str] = [*range(1, 31), *(str(uuid.UUID(int=n << 96 | n)) for n in range(1, 31))]
ABSENT = str(uuid.UUID(int=2**127))


def vector(seed: int) -> list[float]:
    """A random direction."""
    rng = random.Random(seed)
    return [rng.gauss(0, 1) for _ in range(DIMENSION)]


def payload(n: int) -> dict[str, Any]:
    """Every kind of value; some fields are missing here and there."""
    fields: dict[str, Any] = {
        "n": n,
        "half": n / 2,
        "group": f"group-{n % 3}",
        "tags": [f"tag-{n % 2}", f"tag-{n % 5}"],
        "taken": f"2024-01-{n % 28 + 1:02d}T12:00:00Z",
        "nested": {"deep": {"n": n % 4}, "list": [{"a": n % 2, "b": n % 3}]},
        "place": {"lon": 13.0 + n / 100, "lat": 52.0},
        "text": "ein Bild mit Ümläuten 🌊" if n % 2 else "a picture",
        "even": n % 2 == 0,
    }
    if n % 4 == 0:
        fields["nothing"] = None
    if n % 5 == 0:
        del fields["tags"]
    return fields


def fill(client: QdrantClient, name: str) -> None:
    """60 points, half of them numbered and half with UUIDs."""
    client.create_collection(name, vectors_config=models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE))
    numbers = range(len(IDS))
    client.upsert(
        name, models.Batch(ids=IDS, vectors=[vector(n) for n in numbers], payloads=[payload(n) for n in numbers])
    )


def everything(client: QdrantClient, name: str) -> dict[str, Any]:
    """What a collection holds, by id."""
    records, rest = client.scroll(name, limit=1000, with_vectors=True)
    assert rest is None
    return {str(one.id): (one.payload, one.vector) for one in records}


def alike(one: Any, other: Any) -> bool:
    """Equal, but for what float32 makes of a number."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-5)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


def connect(url: str, **options: Any) -> QdrantClient:
    """A client that does not look at versions: it would warn from a thread of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return QdrantClient(url=url, check_compatibility=False, timeout=30, **options)


@contextmanager
def connected(service: QdrantService, **options: Any) -> Iterator[QdrantClient]:
    """A client of the test server, for one block."""
    client = connect(service.url, **options)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantService]:
    with qdrant_server(tmp_path_factory.mktemp("qdrant")) as running:
        yield running


@pytest.fixture(scope="module", params=["test-server", "real-qdrant"])
def client(request: pytest.FixtureRequest) -> Iterator[QdrantClient]:
    if request.param == "test-server":
        url = request.getfixturevalue("service").url
    else:
        url = os.environ.get("QDRANT_URL")
        if not url:
            pytest.skip("QDRANT_URL is not set: the test server is compared with local mode only")
    to_it = connect(url)
    yield to_it
    to_it.close()


@pytest.fixture
def name(client: QdrantClient) -> Iterator[str]:
    """A collection name of this test's own."""
    unique = f"test {uuid.uuid4().hex}"
    yield unique
    client.delete_collection(unique)


@pytest.fixture
def local() -> Iterator[QdrantClient]:
    """Another implementation of the same calls."""
    memory = QdrantClient(":memory:")
    yield memory
    memory.close()


@pytest.fixture
def both(client: QdrantClient, local: QdrantClient, name: str) -> Callable[[Callable[[QdrantClient], Any]], Any]:
    """Does the same to the server and in local mode, where `name` is filled, and compares what they answer."""
    fill(client, name)
    fill(local, name)

    def do(action: Callable[[QdrantClient], Any]) -> Any:
        answer, expected = action(client), action(local)
        assert alike(answer, expected), f"{answer}\n{expected}"
        return answer

    return do


def refused(status: int, action: Callable[[], Any], *words: str) -> None:
    with pytest.raises(UnexpectedResponse) as caught:
        action()
    assert caught.value.status_code == status, caught.value
    for word in words:
        assert word in caught.value.content.decode()


def test_a_collection_is_made_described_and_removed(client: QdrantClient, name: str) -> None:
    vectors = models.VectorParams(
        size=DIMENSION, distance=models.Distance.COSINE, datatype=models.Datatype.FLOAT16, on_disk=True
    )
    assert not client.collection_exists(name)
    assert client.create_collection(
        name,
        vectors_config=vectors,
        hnsw_config=models.HnswConfigDiff(m=8),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0),
        quantization_config=models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8)
        ),
        metadata={"owner": {"a": 1}},
    )
    assert client.collection_exists(name)
    assert name in {one.name for one in client.get_collections().collections}
    info = client.get_collection(name)
    assert info.config.params.vectors == vectors
    assert (info.config.hnsw_config.m, info.config.hnsw_config.ef_construct) == (8, 100)
    assert info.config.optimizer_config.indexing_threshold == 0
    assert isinstance(info.config.quantization_config, models.ScalarQuantization)
    assert info.config.metadata == {"owner": {"a": 1}}
    assert (info.status, info.points_count, info.payload_schema) == (models.CollectionStatus.GREEN, 0, {})
    refused(409, lambda: client.create_collection(name, vectors_config=vectors), "already exists!")
    assert client.delete_collection(name)
    assert not client.delete_collection(name)
    assert not client.collection_exists(name)


def test_metadata_is_merged_by_top_level_key(
    client: QdrantClient, local: QdrantClient, name: str, both: Callable[..., Any]
) -> None:
    for change in ({"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"z": 3}}, {"b": None, "c": [1]}):
        both(lambda at, change=change: at.update_collection(name, metadata=change))
        both(lambda at: at.get_collection(name).config.metadata)
    assert client.get_collection(name).config.metadata == {"a": {"z": 3}, "c": [1]}


def test_configuration_is_updated_and_points_stay(client: QdrantClient, name: str) -> None:
    fill(client, name)
    before = everything(client, name)
    client.update_collection(
        name,
        hnsw_config=models.HnswConfigDiff(m=24),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=50000),
        vectors_config={"": models.VectorParamsDiff(on_disk=True)},
        quantization_config=models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
    )
    config = client.get_collection(name).config
    assert (config.hnsw_config.m, config.hnsw_config.ef_construct) == (24, 100)
    assert config.optimizer_config.indexing_threshold == 50000
    assert isinstance(config.params.vectors, models.VectorParams)
    assert config.params.vectors.on_disk is True
    assert isinstance(config.quantization_config, models.BinaryQuantization)
    client.update_collection(name, quantization_config=models.Disabled.DISABLED)
    assert client.get_collection(name).config.quantization_config is None
    assert everything(client, name) == before


def test_points_come_back_as_they_went_in(name: str, both: Callable[..., Any]) -> None:
    assert both(lambda at: everything(at, name))[str(IDS[4])][0] == payload(4)
    wanted = [IDS[3], IDS[40], ABSENT]
    choices: list[Any] = [True, False, ["n", "nested.deep"], models.PayloadSelectorExclude(exclude=["n", "tags"])]
    for choice in choices:
        found = both(
            lambda at, choice=choice: {
                str(one.id): one.payload or {} for one in at.retrieve(name, wanted, with_payload=choice)
            }
        )
        assert set(found) == {str(IDS[3]), str(IDS[40])}


def test_upserting_points_replaces_them(client: QdrantClient, name: str, both: Callable[..., Any]) -> None:
    points = [
        models.PointStruct(id=IDS[0], vector=vector(100), payload={"new": True}),
        models.PointStruct(id=ABSENT, vector=vector(101)),
    ]
    both(lambda at: at.upsert(name, points, wait=True) and None)
    both(lambda at: everything(at, name))
    assert both(lambda at: at.count(name).count) == len(IDS) + 1


@pytest.mark.parametrize("mode", list(models.UpdateMode))
def test_update_modes(name: str, mode: models.UpdateMode, both: Callable[..., Any]) -> None:
    points = [models.PointStruct(id=id_, vector=vector(7), payload={"mode": mode.value}) for id_ in (IDS[0], ABSENT)]
    both(lambda at: at.upsert(name, points, update_mode=mode) and None)
    held = both(lambda at: everything(at, name))
    assert (held[str(IDS[0])][0] == {"mode": mode.value}) == (mode != models.UpdateMode.INSERT_ONLY)
    assert (ABSENT in held) == (mode != models.UpdateMode.UPDATE_ONLY)


def test_upsert_with_a_filter(name: str, both: Callable[..., Any]) -> None:
    points = [models.PointStruct(id=id_, vector=vector(7), payload={"late": 1}) for id_ in (IDS[0], IDS[1], ABSENT)]
    only = models.Filter(must=[models.FieldCondition(key="n", match=models.MatchValue(value=1))])
    both(lambda at: at.upsert(name, points, update_filter=only) and None)
    held = both(lambda at: everything(at, name))
    assert [held[str(id_)][0].get("late") for id_ in (IDS[0], IDS[1], ABSENT)] == [None, 1, 1]


def field(key: str, **condition: Any) -> models.FieldCondition:
    return models.FieldCondition(key=key, **condition)


FILTERS: dict[str, models.Filter] = {
    "value": models.Filter(must=[field("group", match=models.MatchValue(value="group-1"))]),
    "one condition without a list": models.Filter(must=field("even", match=models.MatchValue(value=True))),
    "any": models.Filter(must=[field("n", match=models.MatchAny(any=[1, 2, 3]))]),
    "except": models.Filter(must=[field("group", match=models.MatchExcept(**{"except": ["group-0", "group-1"]}))]),
    "range": models.Filter(must=[field("half", range=models.Range(gt=3, lte=10))]),
    "dates": models.Filter(
        must=[field("taken", range=models.DatetimeRange(gte="2024-01-10T12:00:00Z", lt="2024-01-20"))]
    ),
    "count": models.Filter(must=[field("tags", values_count=models.ValuesCount(gte=2))]),
    "empty": models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key="tags"))]),
    "null": models.Filter(must=[models.IsNullCondition(is_null=models.PayloadField(key="nothing"))]),
    "ids": models.Filter(must=[models.HasIdCondition(has_id=[IDS[2], IDS[50], ABSENT])]),
    "should": models.Filter(
        should=[field("n", match=models.MatchValue(value=5)), field("group", match=models.MatchValue(value="group-2"))]
    ),
    "must not": models.Filter(must_not=[field("tags", match=models.MatchValue(value="tag-1"))]),
    "at least two": models.Filter(
        min_should=models.MinShould(
            conditions=[
                field("n", range=models.Range(lt=20)),
                field("even", match=models.MatchValue(value=True)),
                field("tags[]", match=models.MatchValue(value="tag-3")),
            ],
            min_count=2,
        )
    ),
    "in an object": models.Filter(must=[field("nested.deep.n", match=models.MatchValue(value=3))]),
    "in one element": models.Filter(
        must=[
            models.NestedCondition(
                nested=models.Nested(
                    key="nested.list",
                    filter=models.Filter(
                        must=[
                            field("a", match=models.MatchValue(value=1)),
                            field("b", match=models.MatchValue(value=2)),
                        ]
                    ),
                )
            )
        ]
    ),
    "filter in a filter": models.Filter(
        must=[
            models.Filter(must_not=[field("even", match=models.MatchValue(value=True))]),
            field("n", range=models.Range(lt=9)),
        ]
    ),
    "around": models.Filter(
        must=[field("place", geo_radius=models.GeoRadius(center=models.GeoPoint(lon=13.1, lat=52), radius=5000))]
    ),
    "box": models.Filter(
        must=[
            field(
                "place",
                geo_bounding_box=models.GeoBoundingBox(
                    top_left=models.GeoPoint(lon=13.05, lat=53), bottom_right=models.GeoPoint(lon=13.2, lat=51)
                ),
            )
        ]
    ),
    "text": models.Filter(must=[field("text", match=models.MatchText(text="Ümläuten"))]),
}


def test_filters(name: str, both: Callable[..., Any]) -> None:
    for label, wanted in FILTERS.items():
        count = both(lambda at, wanted=wanted: at.count(name, count_filter=wanted, exact=True).count)
        assert 0 < count < len(IDS), label
        both(lambda at, wanted=wanted: {str(one.id) for one in at.scroll(name, wanted, limit=100)[0]})
        both(
            lambda at, wanted=wanted: [
                str(one.id) for one in found(at, name, query=vector(5), query_filter=wanted, limit=9)
            ]
        )


def found(client: QdrantClient, name: str, **query: Any) -> list[models.ScoredPoint]:
    return client.query_points(name, **query).points


def ranked(points: list[models.ScoredPoint]) -> list[Any]:
    """Ids in order, with scores and what was asked for."""
    return [(str(one.id), one.score, one.payload or {}) for one in points]


QUERIES: dict[str, dict[str, Any]] = {
    "vector": {"query": vector(1), "limit": 20},
    "page": {"query": vector(1), "limit": 7, "offset": 5, "with_payload": ["n"]},
    "threshold": {"query": vector(2), "limit": 50, "score_threshold": 0.1},
    "exact": {"query": vector(3), "search_params": models.SearchParams(exact=True), "with_payload": False},
    "filtered": {"query": vector(3), "query_filter": FILTERS["range"], "with_payload": True},
    "number": {"query": IDS[3]},
    "uuid": {"query": IDS[33], "query_filter": FILTERS["must not"]},
    "likes": {"query": models.RecommendQuery(recommend=models.RecommendInput(positive=[IDS[1], IDS[31]]))},
    "likes and dislikes": {
        "query": models.RecommendQuery(
            recommend=models.RecommendInput(positive=[IDS[1], vector(9)], negative=[IDS[2], vector(8)])
        ),
        "limit": 30,
    },
    "diverse": {"query": models.NearestQuery(nearest=vector(4), mmr=models.Mmr(diversity=0.7, candidates_limit=40))},
    "diverse around a point": {
        "query": models.NearestQuery(nearest=IDS[3], mmr=models.Mmr()),
        "query_filter": FILTERS["range"],
        "limit": 4,
    },
    "best score": {
        "query": models.RecommendQuery(
            recommend=models.RecommendInput(
                positive=[IDS[1], IDS[4]], negative=[IDS[2]], strategy=models.RecommendStrategy.BEST_SCORE
            )
        )
    },
}


@pytest.mark.filterwarnings("ignore:Local mode performs exact")
@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_queries(name: str, query: dict[str, Any], both: Callable[..., Any]) -> None:
    assert both(lambda at: ranked(found(at, name, **query)))


def test_query_for_nothing_gives_points_by_id(name: str, both: Callable[..., Any]) -> None:
    page = both(lambda at: [str(one.id) for one in found(at, name, limit=5, offset=28)])
    assert page == [str(id_) for id_ in IDS[28:33]]


@pytest.mark.parametrize("by", ["group", "n", "tags"])
def test_groups(name: str, by: str, both: Callable[..., Any]) -> None:
    groups = both(
        lambda at: [
            (one.id, ranked(one.hits))
            for one in at.query_points_groups(
                name, by, query=vector(5), limit=3, group_size=4, query_filter=FILTERS["must not"]
            ).groups
        ]
    )
    assert len(groups) == 3


def test_a_random_sample(client: QdrantClient, name: str) -> None:
    fill(client, name)
    sample = models.SampleQuery(sample=models.Sample.RANDOM)
    samples = [[str(one.id) for one in found(client, name, query=sample, limit=20)] for _ in range(2)]
    assert [len(set(one)) for one in samples] == [20, 20]
    assert samples[0] != samples[1]


def test_several_queries_at_once(name: str, both: Callable[..., Any]) -> None:
    requests = [
        models.QueryRequest(query=vector(1), limit=3, with_payload=True),
        models.QueryRequest(query=IDS[3], filter=FILTERS["value"], limit=4),
    ]
    answers = both(lambda at: [ranked(one.points) for one in at.query_batch_points(name, requests)])
    assert [len(one) for one in answers] == [3, 4]


def test_vectors_come_with_hits_if_wanted(name: str, both: Callable[..., Any]) -> None:
    both(lambda at: [one.vector for one in found(at, name, query=vector(4), with_vectors=True)])


def test_scrolling_pages_through_everything(client: QdrantClient, name: str) -> None:
    fill(client, name)
    seen: list[str] = []
    offset: Any = None
    while True:
        page, offset = client.scroll(name, limit=17, offset=offset, with_payload=["n"])
        assert all(set(one.payload or {}) == {"n"} for one in page)
        seen += [str(one.id) for one in page]
        if offset is None:
            break
    assert seen == [str(id_) for id_ in IDS]


def test_operations_in_a_batch(name: str, both: Callable[..., Any]) -> None:
    few = models.Filter(must=[field("n", range=models.Range(gte=50))])
    operations: list[models.UpdateOperation] = [
        models.UpsertOperation(
            upsert=models.PointsList(
                points=[models.PointStruct(id=ABSENT, vector=vector(9), payload={"n": 99, "old": 1})]
            )
        ),
        models.SetPayloadOperation(
            set_payload=models.SetPayload(payload={"flag": [1], "half": None}, points=[IDS[0], ABSENT])
        ),
        models.SetPayloadOperation(set_payload=models.SetPayload(payload={"flag": 2}, filter=few)),
        models.SetPayloadOperation(set_payload=models.SetPayload(payload={"x": 1}, key="nested.deep", points=[IDS[1]])),
        models.OverwritePayloadOperation(overwrite_payload=models.SetPayload(payload={"only": 1}, points=[IDS[2]])),
        models.DeletePayloadOperation(
            delete_payload=models.DeletePayload(keys=["tags", "old"], points=[IDS[3], ABSENT])
        ),
        models.ClearPayloadOperation(clear_payload=models.PointIdsList(points=[IDS[4]])),
        models.UpdateVectorsOperation(
            update_vectors=models.UpdateVectors(points=[models.PointVectors(id=IDS[5], vector=vector(77))])
        ),
        models.DeleteOperation(delete=models.PointIdsList(points=[IDS[6], IDS[46]])),
    ]
    both(lambda at: at.batch_update_points(name, operations, wait=True) and None)
    held = both(lambda at: everything(at, name))
    assert held[ABSENT][0] == {"n": 99, "flag": 2}
    assert str(IDS[6]) not in held


def test_payloads_are_changed_and_points_deleted(name: str, both: Callable[..., Any]) -> None:
    few = models.Filter(must=[field("n", range=models.Range(lt=10))])
    both(lambda at: at.set_payload(name, {"a": 1}, points=few) and None)
    both(lambda at: at.overwrite_payload(name, {"b": 1}, points=[IDS[50]]) and None)
    both(lambda at: at.delete_payload(name, ["group"], points=[IDS[51]]) and None)
    both(lambda at: at.clear_payload(name, points_selector=[IDS[52]]) and None)
    both(lambda at: at.delete(name, [IDS[53], ABSENT]) and None)
    both(
        lambda at: (
            at.delete(name, models.FilterSelector(filter=models.Filter(must=[field("n", range=models.Range(lt=5))])))
            and None
        )
    )
    held = both(lambda at: everything(at, name))
    assert len(held) == len(IDS) - 6
    assert held[str(IDS[50])][0] == {"b": 1}


def test_payload_indexes_and_facets(client: QdrantClient, name: str) -> None:
    fill(client, name)
    client.create_payload_index(name, "group", models.PayloadSchemaType.KEYWORD)
    client.create_payload_index(name, "n", models.IntegerIndexParams(type="integer", lookup=True, range=False))
    client.create_payload_index(name, "nested.deep.n", models.PayloadSchemaType.INTEGER)
    schema = client.get_collection(name).payload_schema
    assert {key: (one.data_type.value, one.points) for key, one in schema.items()} == {
        "group": ("keyword", 60),
        "n": ("integer", 60),
        "nested.deep.n": ("integer", 60),
    }
    params = schema["n"].params
    assert isinstance(params, models.IntegerIndexParams)
    assert params.range is False
    hits = client.facet(
        name, "group", facet_filter=models.Filter(must=[field("n", range=models.Range(lt=10))]), exact=True
    ).hits
    assert {hit.value: hit.count for hit in hits} == {"group-0": 4, "group-1": 3, "group-2": 3}
    assert client.count(name, count_filter=FILTERS["value"]).count == 20
    client.delete_payload_index(name, "n")
    assert set(client.get_collection(name).payload_schema) == {"group", "nested.deep.n"}
    refused(400, lambda: client.facet(name, "half"), "No appropriate index")


def test_aliases(client: QdrantClient, local: QdrantClient, name: str, both: Callable[..., Any]) -> None:
    alias, later, other = f"alias of {name}", f"later alias of {name}", f"other {name}"

    def change(*actions: Any) -> None:
        both(lambda at: at.update_collection_aliases(list(actions)))

    def create(target: str, alias_name: str) -> models.CreateAliasOperation:
        return models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=target, alias_name=alias_name)
        )

    try:
        change(create(name, alias))
        fill(client, other)
        fill(local, other)
        for at in (client, local):
            at.delete(other, [IDS[0]])
        both(lambda at: at.count(alias).count)
        both(lambda at: at.get_collection_aliases(name).aliases)
        both(lambda at: [one for one in at.get_aliases().aliases if one.collection_name == name])
        assert client.collection_exists(alias)
        assert alias not in {one.name for one in client.get_collections().collections}
        client.upsert(alias, [models.PointStruct(id=ABSENT, vector=vector(1))])
        assert client.count(name).count == len(IDS) + 1
        assert client.update_collection(alias, metadata={"through": "alias"})
        assert client.get_collection(name).config.metadata == {"through": "alias"}
        # The switch of a live index: one call, no moment in between.
        change(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)), create(other, alias))
        assert both(lambda at: at.count(alias).count) == len(IDS) - 1
        change(models.RenameAliasOperation(rename_alias=models.RenameAlias(old_alias_name=alias, new_alias_name=later)))
        assert not client.collection_exists(alias)
        assert client.count(later).count == len(IDS) - 1
        refused(404, lambda: client.update_collection_aliases([create("nowhere", alias)]), "`nowhere` doesn't exist!")
        refused(409, lambda: client.update_collection_aliases([create(other, name)]), "already exists!")
        assert not client.delete_collection(later)
    finally:
        client.delete_collection(other)
    assert not client.collection_exists(later)


def test_what_is_wrong_is_refused(client: QdrantClient, name: str) -> None:
    fill(client, name)
    before = everything(client, name)
    where = ("Not found: Collection `nowhere` doesn't exist!", '"status":')
    refused(404, lambda: client.get_collection("nowhere"), where[0])
    refused(404, lambda: client.count("nowhere"), where[0])
    refused(404, lambda: client.upsert("nowhere", [models.PointStruct(id=1, vector=vector(1))]), *where)
    refused(404, lambda: client.query_points(name, query=ABSENT), f"No point with id {ABSENT} found")
    good = models.PointStruct(id=ABSENT, vector=vector(1))
    short = models.PointStruct(id=1, vector=[1.0])
    refused(400, lambda: client.upsert(name, [good, short]), "Vector dimension error: expected dim: 8, got 1")
    refused(400, lambda: client.query_points(name, query=[1.0, 2.0]), "Vector dimension error")
    refused(400, lambda: client.query_points(name, query=vector(1), using="other"), "Not existing vector name")
    refused(
        400,
        lambda: client.upsert(name, [models.PointStruct(id="no-uuid", vector=vector(1))]),
        "Format error in JSON body",
    )
    refused(400, lambda: client.retrieve(name, [-1]), "Format error in JSON body")
    refused(422, lambda: client.query_points(name, query=vector(1), limit=0), "limit")
    assert everything(client, name) == before


def test_named_vectors_are_told_apart(client: QdrantClient, name: str) -> None:
    both_vectors = {
        "first": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE),
        "second": models.VectorParams(size=2, distance=models.Distance.DOT),
    }
    client.create_collection(name, vectors_config=both_vectors)
    client.upsert(
        name, models.Batch(ids=[1, 2], vectors={"first": [vector(1), vector(2)], "second": [[1.0, 0], [0, 1.0]]})
    )
    assert client.get_collection(name).config.params.vectors == both_vectors
    assert [one.id for one in found(client, name, query=[0.1, 1.0], using="second")] == [2, 1]
    assert [one.id for one in found(client, name, query=1, using="first")] == [2]
    (record,) = client.retrieve(name, [1], with_vectors=["second"])
    assert record.vector == {"second": [1.0, 0.0]}


def test_many_clients_at_once(client: QdrantClient, name: str) -> None:
    fill(client, name)

    def work(number: int) -> None:
        for step in range(10):
            points = [
                models.PointStruct(id=10_000 + number * 1000 + step * 10 + n, vector=vector(n), payload={"by": number})
                for n in range(10)
            ]
            client.upsert(name, points)
            client.query_points(name, query=vector(step))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert client.count(name).count == len(IDS) + 8 * 100


# From here on the test server alone.


def send(url: str, method: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """A bare HTTP request."""
    request = urllib.request.Request(url, data=body, method=method, headers=headers)  # noqa: S310 - our own server
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def test_health_and_version(service: QdrantService) -> None:
    assert [send(service.url + path, "GET")[0] for path in ("/", "/healthz", "/readyz", "/livez")] == [200] * 4
    _, about = send(service.url, "GET")
    assert is_compatible(importlib.metadata.version("qdrant-client"), about.split('"version": "')[1].split('"')[0])


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"points": 1}', b'{"points": [{"id": 1, "vector": [NaN]}]}', b"\xff"]
)
def test_bad_bodies_are_refused(service: QdrantService, body: bytes) -> None:
    with connected(service) as client:
        fill(client, "bodies")
        status, said = send(f"{service.url}/collections/bodies/points", "PUT", body)
        assert (status, '{"status": {"error": "' in said) == (400, True)
        assert client.count("bodies").count == len(IDS)
        client.delete_collection("bodies")


def test_a_body_over_32_mib_is_refused(service: QdrantService) -> None:
    status, said = send(f"{service.url}/collections/any/points", "PUT", b" " * (32 * 1024 * 1024 + 1))
    assert status == 400
    assert "JSON payload (33554433 bytes) is larger than allowed (limit: 33554432 bytes)" in said


def test_what_is_not_done_says_so(service: QdrantService) -> None:
    with connected(service) as client:
        fill(client, "unsupported")
        groups: list[Callable[[], Any]] = [
            lambda: client.query_points_groups("unsupported", "nested.deep.n", query=vector(1)),
            lambda: client.query_points("unsupported", query=models.FusionQuery(fusion=models.Fusion.RRF)),
            lambda: client.query_points("unsupported", prefetch=models.Prefetch(query=vector(1)), query=vector(2)),
            lambda: client.scroll("unsupported", order_by="n"),
            lambda: client.create_collection("sparse", sparse_vectors_config={"s": models.SparseVectorParams()}),
            lambda: client.create_snapshot("unsupported"),
        ]
        for action in groups:
            refused(501, action, '{"status": {"error": "Not implemented by the test server: ')
        client.delete_collection("unsupported")


def test_the_api_key_is_asked_for(tmp_path: Path) -> None:
    with qdrant_server(tmp_path, api_key="right") as service:
        for key, why in ((None, "Must provide an API key"), ("wrong", "Invalid API key")):
            with connected(service, api_key=key) as client:
                refused(401, client.get_collections, why)
        with connected(service, api_key="right") as client:
            assert client.get_collections().collections == []
        assert send(service.url + "/healthz", "GET")[0] == 200


def test_everything_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    with qdrant_server(tmp_path) as service, connected(service) as client:
        fill(client, "kept")
        fill(client, "gone")
        client.update_collection("kept", metadata={"a": {"b": None}}, hnsw_config=models.HnswConfigDiff(m=5))
        client.create_payload_index("kept", "n", models.IntegerIndexParams(type="integer", range=True))
        client.update_collection_aliases(
            [models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="kept", alias_name="live"))]
        )
        client.delete("kept", [IDS[0]])
        client.set_payload("kept", {"late": "✓"}, points=[IDS[1]])
        client.delete_collection("gone")
        before, described = everything(client, "kept"), client.get_collection("live").config
        pid = service.pid
        service.kill()
        service.start()
        assert service.pid != pid
        assert everything(client, "live") == before
        info = client.get_collection("live")
        assert info.config == described
        assert info.payload_schema["n"].points == len(IDS) - 1
        assert [one.name for one in client.get_collections().collections] == ["kept"]
        assert len(list((tmp_path / "data" / "collections").iterdir())) == 1
        service.stop()
        service.start()
        assert everything(client, "live") == before


def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from services import qdrant_server\n"
        "print(qdrant_server(Path(sys.argv[1])).pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_indexes_are_built_in_the_background(service: QdrantService) -> None:
    with connected(service) as client:
        client.create_collection(
            "large",
            vectors_config=models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE),
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=10),
        )
        client.upsert("large", models.Batch(ids=list(range(2000)), vectors=[vector(n) for n in range(2000)]))
        assert client.get_collection("large").status == models.CollectionStatus.YELLOW
        deadline = time.monotonic() + 20
        while client.get_collection("large").status != models.CollectionStatus.GREEN:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert (client.get_collection("large").indexed_vectors_count or 0) >= 2000
        approximate = [one.id for one in found(client, "large", query=vector(3), limit=5)]
        assert approximate[0] == 3
        client.delete_collection("large")

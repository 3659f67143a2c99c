"""`/v1/search` and what belongs to it, on a really ingested archive: the same answers as the library gives."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from cli_support import points
from PIL import Image, ImageChops
from qdrant_client import models
from server_support import XSS_NAME, XSS_VALUE, Shown, data_url, in_thread

from mcip_qdrant.keys import point_id
from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.server import search_api
from mcip_qdrant.server.settings import Limits
from mcip_qdrant.store import open_store


@pytest.fixture(scope="module")
def encoder(shown: Shown) -> Iterator[QueryEncoder]:
    """The same model in this process."""
    with QueryEncoder.open(shown.bundle, device="cpu", threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def stored(shown: Shown, tmp_path_factory: pytest.TempPathFactory) -> dict[str, models.Record]:
    """Every point, read from a copy of the folder: the server has the folder itself."""
    import shutil

    copy = tmp_path_factory.mktemp("copy") / "qdrant"
    shutil.copytree(shown.home / "qdrant", copy, ignore=shutil.ignore_patterns(".lock"))
    return points(copy)


def ranking(stored: dict[str, models.Record], vector: Any) -> list[str]:
    """Keys by cosine, worked out here; copies of a picture count once."""
    matrix = np.array([record.vector for record in stored.values()], dtype=np.float64)
    scores = matrix @ np.asarray(vector, dtype=np.float64) / np.linalg.norm(matrix, axis=1)
    best, seen = [], set()
    for index in np.argsort(-scores, kind="stable"):
        key, digest = list(stored)[index], list(stored.values())[index].payload["sha256"]  # type: ignore[index]
        if digest not in seen:
            seen.add(digest)
            best.append(key)
    return best


def keys(answer: dict[str, Any]) -> list[str]:
    """Keys of the hits."""
    return [hit["key"] for hit in answer["hits"]]


def test_words(shown: Shown, encoder: QueryEncoder, stored: dict[str, models.Record]) -> None:
    answer = shown.served.search(text="a harbour at night", limit=5)
    assert keys(answer) == ranking(stored, encoder.text("a harbour at night"))[:5]
    assert answer["collection"] == "images"
    assert answer["space_id"] == encoder.bundle.space_id
    scores = [hit["score"] for hit in answer["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_a_picture_finds_itself(shown: Shown) -> None:
    first = shown.served.search(image=data_url(shown.bytes_of("photo-0003.jpg")), limit=1)["hits"][0]
    assert (first["key"], round(first["score"], 3)) == ("photos/photo-0003.jpg", 1.0)
    assert first["payload"]["sha256"]
    assert first["vector"] is None


def test_more_like_an_image_leaves_it_out(shown: Shown, stored: dict[str, models.Record]) -> None:
    key = "photos/photo-0004.jpg"
    expected = [other for other in ranking(stored, stored[key].vector) if other != key][:5]
    assert keys(shown.served.search(like=key, limit=5)) == expected
    assert keys(shown.served.search(like=point_id(key), limit=5)) == expected
    assert keys(shown.served.search(like={"positive": [key]}, limit=5)) == expected
    several = keys(
        shown.served.search(like={"positive": [key, "photos/photo-0021.jpg"], "negative": ["photos/photo-0000.jpg"]})
    )
    assert not {key, "photos/photo-0021.jpg", "photos/photo-0000.jpg"} & set(several)


def test_a_mix_is_the_library_s_mix(shown: Shown, encoder: QueryEncoder, stored: dict[str, models.Record]) -> None:
    car, cat = shown.bytes_of("photo-0011.jpg"), shown.bytes_of("photo-0003.jpg")
    mix = [{"text": "a beach at night"}, {"image": data_url(car), "weight": 0.7}, {"text": "people", "weight": -0.4}]
    expected = encoder.mix(("a beach at night", 1.0), (car, 0.7), ("people", -0.4))
    assert keys(shown.served.search(mix=mix, limit=9)) == ranking(stored, expected)[:9]
    away = [{"image": data_url(cat), "weight": -1.0}]
    assert keys(shown.served.search(mix=away, limit=3)) == ranking(stored, -encoder.image(cat))[:3]


def test_a_vector_of_one_s_own(shown: Shown, encoder: QueryEncoder, stored: dict[str, models.Record]) -> None:
    vector = encoder.text("rocks")
    answer = shown.served.search(vector=vector.tolist(), limit=4, with_vectors=True)
    assert keys(answer) == ranking(stored, vector)[:4]
    np.testing.assert_allclose(answer["hits"][0]["vector"], stored[keys(answer)[0]].vector, atol=1e-6)


def test_pages_follow_each_other_without_gap_or_overlap(
    shown: Shown, encoder: QueryEncoder, stored: dict[str, models.Record]
) -> None:
    found: list[str] = []
    offset: int | None = 0
    while offset is not None:
        answer = shown.served.search(text="stones", limit=25, offset=offset)
        found += keys(answer)
        offset = answer["next_offset"]
    assert found == ranking(stored, encoder.text("stones"))
    assert len(found) == 60, "61 files, two of them alike"


def test_filters_and_thresholds(shown: Shown) -> None:
    within = {"must": [{"key": "year", "match": {"value": 2016}}]}
    answer = shown.served.search(text="x", filter=within, limit=100)
    assert len(answer["hits"]) > 5
    assert {hit["payload"]["year"] for hit in answer["hits"]} == {2016}
    assert (
        shown.served.search(text="x", filter={"must": [{"key": "no_such_field", "match": {"value": 1}}]})["hits"] == []
    )
    assert shown.served.search(text="x", score_threshold=0.999)["hits"] == []


def test_diverse_hits_and_copies(shown: Shown) -> None:
    picture = data_url(shown.bytes_of("photo-0007.jpg"))
    assert len(shown.served.search(image=picture, limit=10, diverse=True)["hits"]) == 10
    both = shown.served.search(image=picture, limit=2, collapse_duplicates=False)
    assert sorted(keys(both)) == ["photos/copy-of-0007.jpg", "photos/photo-0007.jpg"]
    assert sum("0007" in key for key in keys(shown.served.search(image=picture, limit=10))) == 1


def test_facets_are_those_worth_filtering_by(shown: Shown) -> None:
    facets = {
        facet["field"]: {value["value"]: value["count"] for value in facet["values"]}
        for facet in shown.served.post("/v1/facets", {}).json()["facets"]
    }
    assert set(facets) == {"place", "year"}
    assert sum(facets["year"].values()) == 50
    assert facets["place"] == {"harbour": 25, XSS_VALUE: 25}
    within = {"fields": ["year"], "filter": {"must": [{"key": "place", "match": {"value": "harbour"}}]}, "limit": 2}
    (only,) = shown.served.post("/v1/facets", within).json()["facets"]
    assert len(only["values"]) == 2
    assert sum(value["count"] for value in only["values"]) < 25


def test_the_collection_describes_itself(shown: Shown, encoder: QueryEncoder) -> None:
    assert shown.served.http.get("/v1/collection").json() == {
        "name": "images",
        "images": 61,
        "model": encoder.bundle.manifest.model,
        "space_id": encoder.bundle.space_id,
        "thumbnails": True,
    }


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "exactly one"),
        ({"text": "a", "like": "b"}, "exactly one"),
        ({"text": " "}, "must not be empty"),
        ({"text": "a", "limit": 0}, "limit"),
        ({"text": "a", "limit": -5}, "limit"),
        ({"text": "a", "limit": 251}, "limit"),
        ({"text": "a", "offset": -1}, "offset"),
        ({"text": "a", "limit": "many"}, "limit"),
        ({"like": "photos/nothing.jpg"}, "no image with key or id"),
        ({"like": []}, "like"),
        ({"like": "\ud800"}, "like"),
        ({"like": {"negative": ["photos/photo-0001.jpg"]}}, "positive"),
        ({"vector": [1.0]}, "32 numbers"),
        ({"vector": [0.0] * 32}, "zeros"),
        ({"vector": [float("nan")] * 32}, "finite"),
        ({"vector": [float("inf")] + [0.0] * 31}, "finite"),
        ({"vector": [1e300] * 32}, "finite"),
        ({"mix": []}, "at least 1"),
        ({"mix": [{"weight": 1}]}, "either text or image"),
        ({"mix": [{"text": "a", "image": "data:image/png;base64,AA"}]}, "either text or image"),
        ({"mix": [{"text": "a", "weight": 0}]}, "all zero"),
        ({"mix": [{"text": "a", "weight": float("nan")}]}, "weight"),
        ({"mix": [{"text": "a"}, {"text": "a", "weight": -1}]}, "cancel"),
        ({"image": "https://example.org/x.jpg"}, "fetches nothing"),
        ({"text": "a", "filter": {"mast": []}}, "filter"),
        ({"text": "a", "filter": {"must": [{"key": "x"}, 3]}}, "filter"),
        ({"text": "a", "filter": 3}, "filter"),
        ({"text": "a", "filter": {"must": [{"key": "a[", "match": {"value": 1}}]}}, "field name"),
        ({"text": "a", "filter": {"must": [{"key": "\ud800", "match": {"value": "\ud800"}}]}}, "filter"),
        ({"text": "a", "diverse": True, "offset": 3}, "offset"),
        ({"text": "a", "diverse": 1.5}, "diverse"),
    ],
    ids=lambda given: str(given)[:50],
)
def test_bad_requests_are_told_what_is_wrong(shown: Shown, body: dict[str, Any], says: str) -> None:
    import json

    answer = shown.served.http.post(
        "/v1/search", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]


# Thumbnails.


def test_thumbnails_show_the_pictures_and_may_be_kept_by_the_browser_alone(shown: Shown) -> None:
    for name in (XSS_NAME, "größe 100% & more/a #1?.jpg", "photo-0003.jpg"):
        (hit,) = shown.served.search(image=data_url(shown.bytes_of(name)), limit=1)["hits"]
        answer = shown.served.http.get(hit["thumbnail"])
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.headers["cache-control"] == "private, max-age=3600, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        small = Image.open(io.BytesIO(answer.content)).convert("RGB")
        original = Image.open(io.BytesIO(shown.bytes_of(name))).convert("RGB")
        assert small.size == original.size, "smaller than a thumbnail already"
        difference = ImageChops.difference(small, original).convert("L").resize((8, 8), Image.Resampling.BOX)
        assert max(difference.tobytes()) < 24
    unversioned = shown.served.http.get(hit["thumbnail"].partition("?")[0] + "?v=00")
    assert unversioned.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("00000000-0000-0000-0000-000000000000", 404),
        ("..%2F..%2Fetc%2Fpasswd", 404),
        ("../../../etc/passwd", 404),
        ("%2e%2e/%2e%2e/etc/passwd", 404),
        ("photos%2Fphoto-0003.jpg", 404),
        ("photo-0003.jpg", 400),
        ("1%00", 400),
    ],
)
def test_no_other_address_leads_to_a_file(shown: Shown, path: str, status: int) -> None:
    import socket
    from urllib.parse import urlsplit

    url = urlsplit(shown.served.url)
    assert url.hostname is not None
    assert url.port is not None
    # By hand, because clients tidy up such addresses before they send them.
    with socket.create_connection((url.hostname, url.port), timeout=10) as line:
        line.sendall(f"GET /v1/thumbnails/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert b"root:" not in answer


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "index.html", "nothing.js", ""])
def test_static_files_are_a_list_and_no_folder(shown: Shown, name: str) -> None:
    assert shown.served.http.get(f"/static/{name}").status_code == 404


def test_no_offset_is_handed_out_that_would_be_refused(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_api, "LIMITS", Limits(max_offset=20))
    with QueryEncoder.open(library.bundle, device="cpu") as encoder:
        store = open_store(str(library.qdrant))
        with in_thread(encoder, Limits(), store=store) as url, httpx.Client(base_url=url, timeout=60) as client:
            asked = [(0, 10), (10, 10), (11, 10), (8, 12), (9, 12)]
            bodies = [{"text": "x", "offset": offset, "limit": limit} for offset, limit in asked]
            answers = [client.post("/v1/search", json=body).json() for body in bodies]
        store.close()
    assert [answer["next_offset"] for answer in answers] == [10, 20, None, 20, None]
    assert all(len(answer["hits"]) == limit for answer, (_, limit) in zip(answers, asked, strict=True))

"""`/v1/embeddings` as other programs use it: the right vector, in the right order, whoever else asks."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import Exported
from numpy.typing import NDArray
from openai import OpenAI
from PIL import Image
from qdrant_client import QdrantClient
from server_support import Shown, data_url

from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.server.embedder import Embedder
from mcip_qdrant.server.metrics import Metrics
from mcip_qdrant.server.settings import Limits


@pytest.fixture(scope="module")
def encoder(clip: Exported) -> Iterator[QueryEncoder]:
    """The same model in this process."""
    with QueryEncoder.open(clip.folder, device="cpu", threads=2) as opened:
        yield opened


def vectors_of(answer: httpx.Response) -> NDArray[np.float32]:
    """The vectors of an answer, after checking its form."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["object"] == "list"
    assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
    return np.array([item["embedding"] for item in body["data"]], dtype=np.float32)


def test_openai_s_own_client_gets_the_vectors_of_the_library(shown: Shown, encoder: QueryEncoder) -> None:
    texts = ["a red car", "two dogs on a beach", "a red car"]
    with OpenAI(base_url=f"{shown.served.url}v1", api_key="none") as client:
        as_base64 = client.embeddings.create(model="text-embedding-3-small", input=texts)  # its default form
        as_floats = client.embeddings.create(model="x", input=texts, encoding_format="float")
        single = client.embeddings.create(model="x", input=texts[1])
        (model,) = client.models.list().data
    expected = encoder.texts(texts)
    for answer in (as_base64, as_floats):
        np.testing.assert_allclose([item.embedding for item in answer.data], expected, atol=1e-6)
        assert answer.model == encoder.bundle.manifest.model, "the model that really answered"
    np.testing.assert_array_equal(as_base64.data[0].embedding, as_floats.data[0].embedding)
    np.testing.assert_allclose(single.data[0].embedding, expected[1], atol=1e-6)
    ids = encoder.bundle.tokenizer().encode(texts).ids
    assert as_floats.usage.prompt_tokens == (ids != encoder.bundle.manifest.tokenizer.pad_id).sum()
    assert model.id == encoder.bundle.manifest.model
    assert model.model_extra is not None
    assert model.model_extra["space_id"] == encoder.bundle.space_id


def test_base64_is_little_endian_float32(shown: Shown, encoder: QueryEncoder) -> None:
    answer = shown.served.post("/v1/embeddings", {"input": "a cat", "encoding_format": "base64"}).json()
    raw = base64.b64decode(answer["data"][0]["embedding"])
    np.testing.assert_allclose(np.frombuffer(raw, dtype="<f4"), encoder.text("a cat"), atol=1e-6)


def test_null_is_as_good_as_leaving_out(shown: Shown) -> None:
    nothing = dict.fromkeys(("model", "encoding_format", "dimensions", "user", "modality", "messages"))
    answers = [shown.served.post("/v1/embeddings", {"input": "a cat", **more}) for more in ({}, nothing)]
    np.testing.assert_allclose(vectors_of(answers[1]), vectors_of(answers[0]), atol=1e-6)


@pytest.mark.parametrize("form", ["infinity", "infinity, single", "vllm"], ids=lambda form: form.replace(", ", "-"))
def test_pictures_in_the_forms_that_others_take(shown: Shown, encoder: QueryEncoder, form: str) -> None:
    data = shown.bytes_of("photo-0003.jpg")
    url = data_url(data)
    body = {
        "infinity": {"model": "m", "input": [url], "modality": "image", "encoding_format": "float"},
        "infinity, single": {"input": url, "modality": "image"},
        "vllm": {
            "model": "m",
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
            "encoding_format": "float",
        },
    }[form]
    (vector,) = vectors_of(shown.served.post("/v1/embeddings", body))
    np.testing.assert_allclose(vector, encoder.image(data), atol=1e-5)


def test_words_in_a_message(shown: Shown, encoder: QueryEncoder) -> None:
    for content in ("a cat", [{"type": "text", "text": "a cat"}]):
        (vector,) = vectors_of(shown.served.post("/v1/embeddings", {"messages": [{"content": content}]}))
        np.testing.assert_allclose(vector, encoder.text("a cat"), atol=1e-6)


def test_a_vector_from_http_finds_the_picture_with_qdrant_client(shown: Shown, tmp_path: Path) -> None:
    """What a program in another language does: our vector, its own Qdrant client."""
    stored = shown.served.search(like="photos/photo-0001.jpg", limit=100, with_vectors=True)["hits"]
    client = QdrantClient(":memory:")
    from qdrant_client import models

    size = len(stored[0]["vector"])
    client.create_collection("own", vectors_config=models.VectorParams(size=size, distance=models.Distance.COSINE))
    points = [models.PointStruct(id=hit["id"], vector=hit["vector"], payload=hit["payload"]) for hit in stored]
    client.upsert("own", points)
    body = {"input": [data_url(shown.bytes_of("photo-0003.jpg"))], "modality": "image"}
    (vector,) = vectors_of(shown.served.post("/v1/embeddings", body))
    (first,) = client.query_points("own", query=vector.tolist(), limit=1).points
    assert first.payload is not None
    assert first.payload["key"] == "photos/photo-0003.jpg"
    assert first.score == pytest.approx(1, abs=1e-4)
    client.close()


def test_two_hundred_clients_get_their_own_vectors(shown: Shown, encoder: QueryEncoder) -> None:
    """An index skew would give one user another's vector. Each asks with lists of other lengths, some with pictures."""
    names = [f"photo-{number:04}.jpg" for number in range(10, 30)]
    pictures = [data_url(shown.bytes_of(name)) for name in names]
    expected_pictures = encoder.images([shown.bytes_of(name) for name in names])
    lists = [
        [f"text {client}-{row} {'word ' * (client % 7)}" for row in range(1 + client % 5)] for client in range(200)
    ]
    flat = encoder.texts([text for one in lists for text in one])
    ends = np.cumsum([len(one) for one in lists])[:-1]
    expected_texts = np.split(flat, ends)

    async def client_of(number: int, client: httpx.AsyncClient) -> None:
        if number % 10 == 9:
            which = [number % 20, (number // 10) % 20]
            body: dict[str, object] = {"input": [pictures[index] for index in which], "modality": "image"}
            expected = expected_pictures[which]
        else:
            body, expected = {"input": lists[number]}, expected_texts[number]
        found = vectors_of(await client.post("/v1/embeddings", json=body))
        np.testing.assert_allclose(found, expected, atol=1e-5)

    async def main() -> None:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=shown.served.url, timeout=120, limits=limits) as client:
            await asyncio.gather(*(client_of(number, client) for number in range(200)))

    def model_calls() -> tuple[float, float]:
        lines = shown.served.http.get("/metrics").text.splitlines()
        found = {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}
        return found['mcip_qdrant_batch_size_count{tower="text"}'], found['mcip_qdrant_batch_size_sum{tower="text"}']

    # The texts are told apart far better than the tolerance, or this test could not fail.
    apart = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    assert apart[~np.eye(len(flat), dtype=bool)].min() > 1e-3
    calls_before, rows_before = model_calls()
    asyncio.run(main())
    calls, rows = model_calls()
    assert rows - rows_before == sum(len(one) for number, one in enumerate(lists) if number % 10 != 9)
    assert calls - calls_before < (rows - rows_before) / 4, "concurrent requests share model calls"


def test_int8_vectors_do_not_depend_on_strangers(clip: Exported) -> None:
    """int8 activations are scaled over the whole batch, so rows of different requests never share one."""

    async def main() -> None:
        with QueryEncoder.open(clip.folder, device="cpu", precision="int8") as encoder:
            embedder = Embedder(encoder, row_by_row=True, limits=Limits(), metrics=Metrics())
            texts = [f"{'word ' * number}{number}" for number in range(1, 12)]
            async with embedder.running():
                together = await asyncio.gather(*(embedder.texts([text]) for text in texts))
                in_one_list = await embedder.texts(texts)
            alone = [encoder.text(text) for text in texts]
            batch = encoder.texts(texts)
        np.testing.assert_array_equal(np.concatenate([one.vectors for one in together]), np.stack(alone))
        np.testing.assert_array_equal(in_one_list.vectors, np.stack(alone))
        assert not np.array_equal(batch, np.stack(alone)), "where this holds no more, batches may be shared"

    asyncio.run(main())


# What is refused, and what is only large.


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"input": []}, "at least 1"),
        ({"input": ""}, "input"),
        ({"input": ["a", "   "]}, "input.1: a text must not be empty"),
        ({"input": [1, 2, 3]}, "token ids"),
        ({"input": [[1, 2], [3]]}, "check_embedding_ctx_length"),
        ({"input": ["data:image/png;base64,AAAA"]}, '"modality": "image"'),
        ({"input": "https://example.org/cat.jpg", "modality": "image"}, "fetches nothing"),
        ({"input": "file:///etc/passwd", "modality": "image"}, "fetches nothing"),
        ({"input": "http://169.254.169.254/latest", "modality": "image"}, "fetches nothing"),
        ({"input": "AAAA", "modality": "image"}, "data URL"),
        ({"input": "x", "modality": "audio"}, "modality"),
        ({"input": "x", "dimensions": 7}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "half a character: \ud800"}, "input"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}, "fetches nothing"),
        ({"messages": [{"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}, "at most 1"),
        ({"input": ["x"] * 2049}, "at most 2048"),
        ({"input": ["x"] * 10_000}, "at most 2048"),
        ({"input": ["data:image/png;base64,AAAA"] * 129, "modality": "image"}, "at most 128"),
        ({"input": "data:image/png;base64,AAAA", "modality": "image"}, "not a picture"),
        ({"input": "data:image/png;base64,!!!!", "modality": "image"}, "base64"),
        ({"input": "x" * 200_001}, "200000"),
        ({"input": ["a", "a" + "\n" * 190_000 + "b"]}, "10,000 lines"),
        ({"input": "a" + "\u0301\u0316" * 90_000}, "1,000 combining marks"),
        ({"input": "a" + "&#769;&#790;" * 10_000}, "1,000 combining marks"),
        ({"input": "a" + "\u00cc\u0081\u00cc\u2013" * 10_000}, "1,000 combining marks"),
        ({}, "input"),
        ([], "body"),
    ],
    ids=lambda given: str(given)[:40],
)
def test_bad_requests_are_told_what_is_wrong(shown: Shown, body: object, says: str) -> None:
    # json.dumps writes a half character as \ud800, as a careless client would
    answer = shown.served.http.post(
        "/v1/embeddings", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert says in error["message"] or says == "body"
    assert "Traceback" not in answer.text


def test_the_bad_one_of_several_pictures_is_named(shown: Shown) -> None:
    good = data_url(shown.bytes_of("photo-0001.jpg"))
    bad = data_url(shown.bytes_of("photo-0002.jpg")[:500])
    answer = shown.served.post("/v1/embeddings", {"input": [good, bad], "modality": "image"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("picture 1: ")
    assert answer.json()["error"]["code"] == "corrupt"


def test_two_hundred_megapixels_are_refused_before_they_are_decoded(shown: Shown) -> None:
    stream = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(stream, "PNG")
    assert len(stream.getvalue()) < 100_000, "a bomb: small on the wire"
    answer = shown.served.post(
        "/v1/embeddings", {"input": data_url(stream.getvalue(), "image/png"), "modality": "image"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "too_many_pixels"
    assert answer.elapsed.total_seconds() < 5


def test_a_hundred_thousand_characters_are_read_as_far_as_the_model_reads(shown: Shown, encoder: QueryEncoder) -> None:
    text = "a photograph of a harbour " * 4000
    answer = shown.served.post("/v1/embeddings", {"input": [text, "short"]})
    assert [item["truncated"] for item in answer.json()["data"]] == [True, False]
    start = text[:2000]  # far beyond the context, and the same tokens
    with pytest.warns(UserWarning, match="texts cut"):
        expected = encoder.text(start)
    np.testing.assert_allclose(vectors_of(answer)[0], expected, atol=1e-5)


def test_two_thousand_texts_in_one_request(shown: Shown, encoder: QueryEncoder) -> None:
    texts = [f"number {number}" for number in range(2048)]
    body = {"input": texts, "encoding_format": "base64"}
    answer = shown.served.post("/v1/embeddings", body).json()
    found = np.frombuffer(b"".join(base64.b64decode(item["embedding"]) for item in answer["data"]), dtype="<f4")
    chosen = [0, 1, 63, 64, 1000, 2047]
    np.testing.assert_allclose(found.reshape(2048, -1)[chosen], encoder.texts([texts[i] for i in chosen]), atol=1e-5)

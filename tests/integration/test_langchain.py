"""LangChain's own classes over an ingested archive: embeddings, our retriever, and the plain vector store beside it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import Exported
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_qdrant import QdrantVectorStore
from offline import offline
from qdrant_client import QdrantClient, models

from mcip_qdrant import ImageCollection, InvalidQueryError, QueryEncoder, SpaceMismatchError
from mcip_qdrant.integrations.langchain import McipEmbeddings, McipRetriever

pytestmark = pytest.mark.usefixtures(offline.__name__)
TEXT = "a red car in the snow"


@pytest.fixture(scope="module")
def encoder(clip: Exported) -> QueryEncoder:
    return QueryEncoder.open(clip.folder)


@pytest.fixture(scope="module")
def client(library: object) -> Iterator[QdrantClient]:
    client = QdrantClient(path=str(library.qdrant))  # type: ignore[attr-defined]
    yield client
    client.close()


@pytest.fixture
def collection(client: QdrantClient, encoder: QueryEncoder) -> ImageCollection:
    return ImageCollection(client, "images", encoder)


def test_embeddings_are_the_encoders_own(encoder: QueryEncoder, library: object) -> None:
    embeddings = McipEmbeddings(encoder)
    texts = [TEXT, "a cat", "a house"]
    vector = embeddings.embed_query(TEXT)
    assert all(type(number) is float for number in vector)
    np.testing.assert_allclose(vector, encoder.text(TEXT), atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_documents(texts), encoder.texts(texts), atol=1e-6)
    paths = sorted(str(path) for path in library.folder.glob("*.jpg"))[:3]  # type: ignore[attr-defined]
    np.testing.assert_allclose(embeddings.embed_image(paths), encoder.images(paths), atol=1e-5)
    assert embeddings.embed_documents([]) == embeddings.embed_image([]) == []

    async def twins() -> tuple[list[float], list[list[float]]]:
        return await embeddings.aembed_query(TEXT), await embeddings.aembed_documents(texts)

    assert asyncio.run(twins()) == (vector, embeddings.embed_documents(texts))
    with pytest.raises(InvalidQueryError, match="empty"):
        embeddings.embed_query("")


def test_embeddings_in_a_store_of_langchains(encoder: QueryEncoder) -> None:
    store = InMemoryVectorStore(McipEmbeddings(encoder))
    store.add_documents([Document(page_content=text) for text in ("a cat", "a house", TEXT)])
    assert [found.page_content for found in store.similarity_search(TEXT, k=1)] == [TEXT]


def test_the_retriever_returns_the_whole_payload(collection: ImageCollection, client: QdrantClient) -> None:
    retriever = McipRetriever(collection=collection, limit=5)
    assert isinstance(retriever, BaseRetriever)
    documents = retriever.invoke(TEXT)
    hits = collection.search(text=TEXT, limit=5)
    assert [document.id for document in documents] == [hit.id for hit in hits]
    stored = {record.id: record.payload for record in client.retrieve("images", [hit.id for hit in hits])}
    for document, hit in zip(documents, hits, strict=True):
        assert document.page_content == hit.uri == stored[hit.id]["uri"]
        assert document.metadata == {**stored[hit.id], "_score": hit.score}
    assert {"key", "sha256", "width", "height", "modified_at"} <= set(documents[0].metadata)


def test_search_arguments_hold_for_every_call_or_for_one(collection: ImageCollection) -> None:
    tagged = models.Filter(must=[models.FieldCondition(key="tag", match=models.MatchValue(value="007"))])
    always = McipRetriever(collection=collection, search={"filter": tagged})
    assert [document.metadata["key"] for document in always.invoke(TEXT)] == ["photos/2019/deep/IMG_0001.jpg"]
    usually = McipRetriever(collection=collection, limit=3)
    assert len(usually.invoke(TEXT)) == 3
    assert len(usually.invoke(TEXT, limit=7)) == 7
    assert [document.metadata["tag"] for document in usually.invoke(TEXT, filter=tagged)] == ["007"]
    assert len(usually.invoke(TEXT)) == 3
    with pytest.raises(InvalidQueryError, match="limit"):
        usually.invoke(TEXT, limit=-1)


def test_search_arguments_for_one_call_that_is_asynchronous(collection: ImageCollection) -> None:
    retriever = McipRetriever(collection=collection, limit=5)
    expected = retriever.invoke(TEXT, limit=3)

    async def ways() -> list[list[Document]]:
        return [
            await retriever.ainvoke(TEXT, limit=3),
            await retriever.bind(limit=3).ainvoke(TEXT),
            *await retriever.abatch([TEXT], limit=3),
        ]

    assert asyncio.run(ways()) == [expected] * 3


def test_the_retriever_is_a_runnable_like_any_other(collection: ImageCollection) -> None:
    retriever = McipRetriever(collection=collection, limit=2)
    expected = retriever.invoke(TEXT)
    chain = retriever | RunnableLambda(lambda documents: [document.page_content for document in documents])
    assert chain.invoke(TEXT) == [document.page_content for document in expected]
    assert retriever.batch([TEXT, "a cat"]) == [expected, retriever.invoke("a cat")]

    async def twins() -> list[list[Document]]:
        return await asyncio.gather(retriever.ainvoke(TEXT), retriever.ainvoke("a cat"))

    assert asyncio.run(twins()) == [expected, retriever.invoke("a cat")]


def test_the_retriever_keeps_the_guard(client: QdrantClient, other_clip: Exported) -> None:
    wrong = ImageCollection(client, "images", QueryEncoder.open(other_clip.folder))
    with pytest.raises(SpaceMismatchError):
        McipRetriever(collection=wrong).invoke(TEXT)


def test_the_plain_vector_store_finds_the_same_but_drops_the_payload(
    client: QdrantClient, encoder: QueryEncoder, collection: ImageCollection
) -> None:
    """What docs/integrations.md says about it; a newer langchain-qdrant that keeps the payload should be noticed here."""
    hits = collection.search(text=TEXT, limit=4)
    plain = QdrantVectorStore(client, "images", McipEmbeddings(encoder), content_payload_key="uri")
    found = plain.similarity_search_with_score(TEXT, k=4)
    assert [document.page_content for document, _ in found] == [hit.uri for hit in hits]
    np.testing.assert_allclose([score for _, score in found], [hit.score for hit in hits], atol=1e-5)
    assert {name for document, _ in found for name in document.metadata} == {"_id", "_collection_name"}
    without = QdrantVectorStore(client, "images", McipEmbeddings(encoder))
    assert [document.page_content for document in without.similarity_search(TEXT, k=2)] == ["", ""]


def test_the_retriever_stays_small() -> None:
    assert len(inspect.getsource(McipRetriever).splitlines()) <= 30

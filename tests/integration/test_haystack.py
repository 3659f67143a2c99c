"""The Haystack embedders in real pipelines."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Exported
from haystack import Document, Pipeline
from haystack.components.retrievers import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.dataclasses import ByteStream
from haystack.document_stores.in_memory import InMemoryDocumentStore
from offline import offline
from photos import write_archive

from mcip_qdrant import BundleError, ImageError, InvalidQueryError, QueryEncoder
from mcip_qdrant.integrations.haystack import McipImageDocumentEmbedder, McipTextEmbedder

pytestmark = pytest.mark.usefixtures(offline.__name__)


@pytest.fixture(scope="module")
def encoder(clip: Exported) -> QueryEncoder:
    return QueryEncoder.open(clip.folder)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_archive(tmp_path_factory.mktemp("haystack"), 9)


@pytest.fixture
def documents(paths: list[Path]) -> list[Document]:
    return [Document(meta={"file_path": str(path), "number": number}) for number, path in enumerate(paths)]


def test_pictures_in_texts_out(
    clip: Exported, encoder: QueryEncoder, paths: list[Path], documents: list[Document]
) -> None:
    """Both pipelines go through YAML, as deployed ones do."""
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing = Pipeline()
    indexing.add_component("embedder", McipImageDocumentEmbedder(clip.folder))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    querying = Pipeline()
    querying.add_component("embedder", McipTextEmbedder(clip.folder))
    querying.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=4))
    querying.connect("embedder.embedding", "retriever.query_embedding")
    ours = ["mcip_qdrant.integrations.haystack"]
    indexing, querying = (Pipeline.loads(each.dumps(), allowed_modules=ours) for each in (indexing, querying))

    assert indexing.run({"embedder": {"documents": documents}})["writer"] == {"documents_written": len(paths)}
    expected = np.argsort(-(encoder.images(paths) @ encoder.text("a red car")))[:4].tolist()
    found = querying.run({"embedder": {"text": "a red car"}})["retriever"]["documents"]
    assert [document.meta["number"] for document in found] == expected
    found = asyncio.run(querying.run_async({"embedder": {"text": "a red car"}}))["retriever"]["documents"]
    assert [document.meta["number"] for document in found] == expected


def test_vectors_are_the_encoders_own(
    clip: Exported, encoder: QueryEncoder, paths: list[Path], documents: list[Document]
) -> None:
    text = McipTextEmbedder(clip.folder)
    expected = encoder.text("a cat")
    for answer in (text.run("a cat"), asyncio.run(text.run_async("a cat"))):
        np.testing.assert_allclose(answer["embedding"], expected, atol=1e-6)
        assert type(answer["embedding"][0]) is float
    pictures = McipImageDocumentEmbedder(clip.folder)
    before = [document.to_dict() for document in documents]
    for answer in (pictures.run(documents), asyncio.run(pictures.run_async(documents))):
        embeddings = [document.embedding for document in answer["documents"]]
        np.testing.assert_allclose(embeddings, encoder.images(paths), atol=1e-5)
        assert [replace(document, embedding=None).to_dict() for document in answer["documents"]] == before
    assert [document.to_dict() for document in documents] == before, "the caller's documents stay as they were"
    assert pictures.run([]) == {"documents": []}


def test_blobs_and_paths_below_a_root(clip: Exported, encoder: QueryEncoder, paths: list[Path]) -> None:
    blob = ByteStream(paths[3].read_bytes(), mime_type="image/jpeg")
    documents = [
        Document(blob=blob, meta={"picture": "ignored.jpg"}),
        Document(meta={"picture": paths[5].name}),
        Document(meta={"picture": str(paths[1])}),
    ]
    embedder = McipImageDocumentEmbedder(clip.folder, file_path_meta_field="picture", root_path=paths[0].parent)
    embeddings = [document.embedding for document in embedder.run(documents)["documents"]]
    np.testing.assert_allclose(embeddings, encoder.images([paths[3], paths[5], paths[1]]), atol=1e-5)


def test_settings_survive_serialisation(clip: Exported) -> None:
    text = McipTextEmbedder(clip.folder, device="cpu", precision="int8")
    again = McipTextEmbedder.from_dict(text.to_dict())
    assert again.to_dict() == text.to_dict()
    assert text.to_dict()["init_parameters"] == {"bundle": str(clip.folder), "device": "cpu", "precision": "int8"}
    assert again.run("a cat") == text.run("a cat") != McipTextEmbedder(clip.folder).run("a cat")
    pictures = McipImageDocumentEmbedder(clip.folder, file_path_meta_field="picture", root_path="photos")
    again = McipImageDocumentEmbedder.from_dict(pictures.to_dict())
    assert again.to_dict() == pictures.to_dict()
    assert (again.file_path_meta_field, again.root_path) == ("picture", "photos")


def test_warm_up_opens_the_bundle_and_construction_does_not(clip: Exported, tmp_path: Path) -> None:
    for kind in (McipTextEmbedder, McipImageDocumentEmbedder):
        cold = kind(tmp_path / "no bundle")
        with pytest.raises(BundleError, match="no bundle"):
            cold.warm_up()
        kind(clip.folder).warm_up()


def test_refusals_name_the_document_or_file(clip: Exported, paths: list[Path], tmp_path: Path) -> None:
    embedder = McipImageDocumentEmbedder(clip.folder)
    lost = Document(id="lost", content="no picture")
    with pytest.raises(InvalidQueryError, match=r"document lost .*'file_path'"):
        embedder.run([Document(meta={"file_path": str(paths[0])}), lost])
    (tmp_path / "broken.jpg").write_bytes(b"garbage")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        embedder.run([Document(meta={"file_path": str(tmp_path / "broken.jpg")})])
    with pytest.raises(InvalidQueryError, match="empty"):
        McipTextEmbedder(clip.folder).run("")

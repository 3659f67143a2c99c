"""The LlamaIndex embedding in the real library: numbers, batches, async, serialisation, and an index over pictures."""

from __future__ import annotations

import asyncio
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import Exported
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.schema import ImageNode, QueryBundle, TextNode
from offline import offline
from photos import write_archive

from mcip_qdrant import BundleError, ImageError, InvalidQueryError, QueryEncoder
from mcip_qdrant.integrations.llama_index import McipEmbedding

pytestmark = pytest.mark.usefixtures(offline.__name__)
TEXTS = [f"photograph number {number} of a {noun}" for number in range(5) for noun in ("cat", "house", "red car")]


@pytest.fixture(scope="module")
def encoder(clip: Exported) -> QueryEncoder:
    return QueryEncoder.open(clip.folder)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(path) for path in write_archive(tmp_path_factory.mktemp("llama"), 11)]


def _watched(clip: Exported, batch_size: int) -> tuple[McipEmbedding, LlamaDebugHandler]:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    model = McipEmbedding(
        bundle=str(clip.folder), embed_batch_size=batch_size, callback_manager=CallbackManager([handler])
    )
    return model, handler


def _batches(handler: LlamaDebugHandler) -> list[int]:
    return [len(end.payload[EventPayload.CHUNKS]) for _, end in handler.get_event_pairs(CBEventType.EMBEDDING)]


def test_vectors_are_the_encoders_own(clip: Exported, encoder: QueryEncoder, paths: list[str]) -> None:
    model = McipEmbedding(bundle=str(clip.folder))
    assert isinstance(model, BaseEmbedding)
    for vector in (model.get_query_embedding("a cat"), model.get_text_embedding("a cat")):
        assert all(type(number) is float for number in vector)
        np.testing.assert_allclose(vector, encoder.text("a cat"), atol=1e-6)
    expected = encoder.image(paths[2])
    np.testing.assert_allclose(model.get_image_embedding(paths[2]), expected, atol=1e-6)
    np.testing.assert_allclose(model.get_image_embedding(io.BytesIO(Path(paths[2]).read_bytes())), expected, atol=1e-6)


def test_batches_have_the_size_asked_for_and_keep_the_order(
    clip: Exported, encoder: QueryEncoder, paths: list[str]
) -> None:
    model, handler = _watched(clip, 4)
    np.testing.assert_allclose(model.get_text_embedding_batch(TEXTS), encoder.texts(TEXTS), atol=1e-5)
    assert _batches(handler) == [4, 4, 4, 3]
    handler.flush_event_logs()
    np.testing.assert_allclose(model.get_image_embedding_batch(paths), encoder.images(paths), atol=1e-5)
    assert _batches(handler) == [4, 4, 3]


def test_async_twins_agree_and_leave_the_loop_free(clip: Exported, encoder: QueryEncoder, paths: list[str]) -> None:
    model, handler = _watched(clip, 4)

    async def everything() -> None:
        ticks = 0

        async def clock() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(clock())
        np.testing.assert_allclose(await model.aget_query_embedding("a cat"), encoder.text("a cat"), atol=1e-6)
        np.testing.assert_allclose(await model.aget_text_embedding("a cat"), encoder.text("a cat"), atol=1e-6)
        np.testing.assert_allclose(await model.aget_image_embedding(paths[0]), encoder.image(paths[0]), atol=1e-6)
        handler.flush_event_logs()
        np.testing.assert_allclose(await model.aget_text_embedding_batch(TEXTS), encoder.texts(TEXTS), atol=1e-5)
        np.testing.assert_allclose(await model.aget_image_embedding_batch(paths), encoder.images(paths), atol=1e-5)
        ticking.cancel()
        assert ticks > 10

    asyncio.run(everything())
    assert sorted(_batches(handler)) == [3, 3, 4, 4, 4, 4, 4]


def test_a_bundle_of_another_model_is_refused(clip: Exported, other_clip: Exported) -> None:
    model = McipEmbedding(bundle=clip.folder)
    assert model.bundle == str(clip.folder)
    with pytest.raises(
        BundleError, match=r"is other-clip \(space_id .*not the model that this McipEmbedding was made with"
    ):
        McipEmbedding.from_dict({**model.to_dict(), "bundle": str(other_clip.folder)})


def test_serialised_and_pickled_models_embed_alike(clip: Exported, encoder: QueryEncoder) -> None:
    model = McipEmbedding(bundle=str(clip.folder), precision="int8", embed_batch_size=7)
    assert model.space_id == clip.bundle.manifest.space_id
    assert model.model_name == clip.bundle.manifest.model
    expected = model.get_query_embedding("a cat")
    for again in (
        McipEmbedding.from_dict(model.to_dict()),
        McipEmbedding.from_json(model.to_json()),
        pickle.loads(pickle.dumps(model)),
    ):
        assert (again.precision, again.embed_batch_size, again.space_id) == ("int8", 7, model.space_id)
        assert again.get_query_embedding("a cat") == expected
    assert not np.allclose(expected, encoder.text("a cat"), atol=1e-6), "int8 was used"


def test_refusals_are_ours(clip: Exported, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=str(tmp_path)):
        McipEmbedding(bundle=str(tmp_path))
    model = McipEmbedding(bundle=str(clip.folder))
    with pytest.raises(InvalidQueryError, match="empty"):
        model.get_query_embedding(" ")
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        model.get_image_embedding(str(tmp_path / "gone.jpg"))


def test_an_index_over_texts_and_pictures(clip: Exported, encoder: QueryEncoder, paths: list[str]) -> None:
    model = McipEmbedding(bundle=str(clip.folder))
    nodes = [TextNode(text=text) for text in TEXTS] + [
        ImageNode(image_path=path, metadata={"name": Path(path).name}) for path in paths
    ]
    index = MultiModalVectorStoreIndex(nodes, embed_model=model, image_embed_model=model)
    retriever = index.as_retriever(similarity_top_k=3, image_similarity_top_k=3)

    found = retriever.text_to_image_retrieve("a red car")
    order = np.argsort(-(encoder.images(paths) @ encoder.text("a red car")))[:3]
    assert [each.node.image_path for each in found] == [paths[place] for place in order]
    found = retriever.image_to_image_retrieve(paths[6])
    assert found[0].node.image_path == paths[6]
    assert found[0].score == pytest.approx(1, abs=1e-5)
    assert retriever.text_retrieve(TEXTS[4])[0].node.text == TEXTS[4]
    assert Settings._embed_model is None, "no other model was opened"


def test_the_default_model_of_a_text_index(clip: Exported) -> None:
    index = VectorStoreIndex(
        [TextNode(text=text) for text in TEXTS], embed_model=McipEmbedding(bundle=str(clip.folder))
    )
    best = asyncio.run(index.as_retriever(similarity_top_k=1).aretrieve(QueryBundle(TEXTS[7])))
    assert best[0].node.text == TEXTS[7]

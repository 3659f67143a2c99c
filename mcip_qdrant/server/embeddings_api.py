"""`/v1/embeddings` and `/v1/models`: vectors for programs in any language."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Body
from fastapi.openapi.models import Example
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic_core import to_json

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.server.embedder import Embedder, Picture
from mcip_qdrant.server.embedding_schemas import (
    EmbeddingAnswer,
    EmbeddingRequest,
    ImageEmbedding,
    ImagePart,
    MessageEmbedding,
    Model,
    ModelList,
    TextEmbedding,
)
from mcip_qdrant.server.problems import responses
from mcip_qdrant.server.schema_fields import PICTURE_EXAMPLE

_EXAMPLES: dict[str, Example] = {
    "one text": {"value": {"input": "a red car in the snow"}},
    "several texts, as base64": {"value": {"input": ["a cat", "a dog"], "encoding_format": "base64"}},
    "a picture, as infinity takes it": {"value": {"input": [PICTURE_EXAMPLE], "modality": "image"}},
    "a picture, as vLLM takes it": {
        "value": {
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE_EXAMPLE}}]}]
        }
    },
}


def embeddings_router(embedder: Embedder, model: Model) -> APIRouter:
    """Routes that need no collection."""
    router = APIRouter(prefix="/v1", tags=["embeddings"])

    @router.post("/embeddings", response_model=EmbeddingAnswer, responses=responses())
    async def embeddings(request: Annotated[EmbeddingRequest, Body(openapi_examples=_EXAMPLES)]) -> Response:
        """Vectors of texts or pictures, compatible with OpenAI's embeddings request.

        Whatever `model` names, the one model of this server answers and says which it is.
        """
        if request.dimensions not in {None, model.embedding_dim}:
            raise InvalidQueryError(
                f"{model.id} gives vectors of {model.embedding_dim} dimensions and of no other size"
            )
        rows = _rows(request)
        texts = [row for row in rows if isinstance(row, str)]
        if texts:
            vectors = await embedder.texts(texts)
        else:
            vectors = await embedder.images([row for row in rows if isinstance(row, Picture)])
        # Thousands of vectors take a while to write down, and nobody else should wait for that.
        content = await asyncio.to_thread(
            _answer, vectors, texts, embedder, model.id, as_base64=request.encoding_format == "base64"
        )
        return Response(content, media_type="application/json")

    @router.get("/models", responses=responses())
    async def models() -> ModelList:
        """The model of this server, with the `space_id` that its vectors share with a collection."""
        return ModelList(data=[model])

    return router


def _rows(request: TextEmbedding | ImageEmbedding | MessageEmbedding) -> list[str] | list[Picture]:
    match request:
        case TextEmbedding():
            return [request.input] if isinstance(request.input, str) else request.input
        case ImageEmbedding():
            return [Picture(url) for url in ([request.input] if isinstance(request.input, str) else request.input)]
        case MessageEmbedding():
            content = request.messages[0].content
            if isinstance(content, str):
                return [content]
            part = content[0]
            return [Picture(part.image_url.url)] if isinstance(part, ImagePart) else [part.text]


def _answer(
    vectors: NDArray[np.float32], texts: list[str], embedder: Embedder, model: str, *, as_base64: bool
) -> bytes:
    tokens, truncated = embedder.count_tokens(texts)
    data = []
    for index, vector in enumerate(vectors):
        embedding = base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()
        cut = bool(texts) and truncated[index]
        data.append({"object": "embedding", "index": index, "embedding": embedding, "truncated": cut})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return to_json({"object": "list", "data": data, "model": model, "usage": usage})

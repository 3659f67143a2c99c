"""`/v1/embeddings` and `/v1/models`: vectors for programs in any language."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated

from fastapi import APIRouter, Body
from fastapi.openapi.models import Example
from fastapi.responses import Response
from pydantic_core import to_json

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.server.embedder import Embedder, EncodedTexts, Picture
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
            encoded = await embedder.texts(texts)
        else:
            pictures = [row for row in rows if isinstance(row, Picture)]
            encoded = EncodedTexts(await embedder.images(pictures), tokens=0, truncated=[False] * len(pictures))
        # Thousands of vectors take a while to write down, and nobody else should wait for that.
        content = await asyncio.to_thread(_answer, encoded, model.id, as_base64=request.encoding_format == "base64")
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


def _answer(encoded: EncodedTexts, model: str, *, as_base64: bool) -> bytes:
    data = []
    for index, (vector, truncated) in enumerate(zip(encoded.vectors, encoded.truncated, strict=True)):
        embedding = base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": embedding, "truncated": truncated})
    usage = {"prompt_tokens": encoded.tokens, "total_tokens": encoded.tokens}
    return to_json({"object": "list", "data": data, "model": model, "usage": usage})

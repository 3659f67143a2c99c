"""LlamaIndex: `McipEmbedding`, one multi-modal embedding for texts and pictures."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from mcip_qdrant.errors import BundleError
from mcip_qdrant.extras import needs_extra
from mcip_qdrant.manifest import Precision
from mcip_qdrant.query import QueryEncoder

with needs_extra("llama-index", "mcip_qdrant.integrations.llama_index"):
    from llama_index.core.base.embeddings.base import Embedding
    from llama_index.core.bridge.pydantic import PrivateAttr, field_validator
    from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
    from llama_index.core.schema import ImageType


class McipEmbedding(MultiModalEmbedding):
    """Embeds by the bundle in folder `bundle`; each of its graphs is loaded at its first use.

    Embeddings are lists of D floats, L2 norm 1. `device` and `precision` are `QueryEncoder.open`'s, `embed_batch_size` is LlamaIndex's.
    `space_id` is filled in, so that caches do not take one model's vectors for another's, and one that is given must be the bundle's.
    """

    bundle: str
    device: str = "auto"
    precision: Precision | None = None
    space_id: str = ""
    _encoder: QueryEncoder = PrivateAttr()

    @field_validator("bundle", mode="before")
    @classmethod
    def _path(cls, given: object) -> object:
        return str(given) if isinstance(given, Path) else given

    def model_post_init(self, context: Any, /) -> None:
        """Open the bundle; raises what `QueryEncoder.open` raises."""
        super().model_post_init(context)
        self._encoder = QueryEncoder.open(self.bundle, device=self.device, precision=self.precision)
        manifest = self._encoder.bundle.manifest
        if self.space_id not in {"", manifest.space_id}:
            raise BundleError(
                f"bundle {self.bundle} is {manifest.model} (space_id {manifest.space_id[:12]}), not the model that this McipEmbedding "
                f"was made with (space_id {self.space_id[:12]}); put that bundle back, or make a new McipEmbedding"
            )
        self.model_name, self.space_id = manifest.model, manifest.space_id

    @classmethod
    def class_name(cls) -> str:
        """How LlamaIndex names it in serialised form."""
        return "McipEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return list(self._encoder.texts(texts).tolist())

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._get_text_embedding(query)

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        return list(self._encoder.images(img_file_paths).tolist())

    def _get_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return self._get_image_embeddings([img_file_path])[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_image_embeddings, img_file_paths)

    async def _aget_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return await asyncio.to_thread(self._get_image_embedding, img_file_path)

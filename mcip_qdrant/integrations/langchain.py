"""LangChain: `McipEmbeddings` for any vector store, `McipRetriever` for collections that mcip-qdrant filled."""

from __future__ import annotations

import asyncio
from typing import Any

from mcip_qdrant.extras import needs_extra
from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.search import ImageCollection

with needs_extra("langchain", "mcip_qdrant.integrations.langchain"):
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from pydantic import Field


class McipEmbeddings(Embeddings):
    """Texts and pictures as lists of D floats, L2 norm 1."""

    def __init__(self, encoder: QueryEncoder) -> None:
        self.encoder = encoder

    def embed_query(self, text: str) -> list[float]:
        """One text; raises `InvalidQueryError` where it is empty."""
        return list(self.encoder.text(text).tolist())

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Texts, in their order; raises `InvalidQueryError` where one is empty."""
        return list(self.encoder.texts(texts).tolist()) if texts else []

    def embed_image(self, uris: list[str]) -> list[list[float]]:
        """Picture files, by path, in their order; raises `ImageError` where one cannot be read."""
        return list(self.encoder.images(uris).tolist()) if uris else []


class McipRetriever(BaseRetriever):
    """Pictures that fit a text, best first: `page_content` is the uri, `metadata` the whole payload and `_score`, the cosine.

    `limit` and `search` (more arguments of `ImageCollection.search`, such as `filter`) hold for every call;
    `invoke(text, filter=…)` overrides them for one.
    """

    collection: ImageCollection
    limit: int = 10
    search: dict[str, Any] = Field(default_factory=dict)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - LangChain's signature
        **search: Any,
    ) -> list[Document]:
        hits = self.collection.search(**{"limit": self.limit, **self.search, **search, "text": query})
        return [
            Document(id=hit.id, page_content=hit.uri, metadata={**hit.payload, "_score": hit.score}) for hit in hits
        ]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **search: Any
    ) -> list[Document]:
        return await asyncio.to_thread(
            self._get_relevant_documents, query, run_manager=run_manager.get_sync(), **search
        )

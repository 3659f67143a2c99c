"""Haystack: `McipTextEmbedder` for queries, `McipImageDocumentEmbedder` for documents that are pictures."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.extras import needs_extra
from mcip_qdrant.manifest import Precision
from mcip_qdrant.query import ImageLike, QueryEncoder

with needs_extra("haystack", "mcip_qdrant.integrations.haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict


class _FromBundle:
    """What both components share: their encoder is opened by `warm_up`, or by the first run."""

    def __init__(self, bundle: str | Path, device: str, precision: Precision | None) -> None:
        self.bundle = str(bundle)
        self.device = device
        self.precision = precision
        self._encoder: QueryEncoder | None = None

    def warm_up(self) -> None:
        """Open the bundle; raises what `QueryEncoder.open` raises."""
        self._opened()

    def _opened(self) -> QueryEncoder:
        if self._encoder is None:
            self._encoder = QueryEncoder.open(self.bundle, device=self.device, precision=self.precision)
        return self._encoder

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Undo `to_dict`."""
        return default_from_dict(cls, data)


@component
class McipTextEmbedder(_FromBundle):
    """A text as a list of D floats, L2 norm 1; `device` and `precision` are `QueryEncoder.open`'s."""

    def __init__(self, bundle: str | Path, *, device: str = "auto", precision: Precision | None = None) -> None:
        _FromBundle.__init__(
            self, bundle, device, precision
        )  # Haystack rebuilds the class, so that super() does not work

    def to_dict(self) -> dict[str, Any]:
        """The settings, for a pipeline's YAML."""
        return default_to_dict(self, bundle=self.bundle, device=self.device, precision=self.precision)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed one text; raises `InvalidQueryError` where it is empty."""
        return {"embedding": self._opened().text(text).tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, text)


@component
class McipImageDocumentEmbedder(_FromBundle):
    """Copies of documents with the embedding of their picture: their `blob`, or else the file that their metadata names.

    `file_path_meta_field` is the name of that metadata field; relative paths start at `root_path`.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        device: str = "auto",
        precision: Precision | None = None,
        file_path_meta_field: str = "file_path",
        root_path: str | Path | None = None,
    ) -> None:
        _FromBundle.__init__(
            self, bundle, device, precision
        )  # Haystack rebuilds the class, so that super() does not work
        self.file_path_meta_field = file_path_meta_field
        self.root_path = str(root_path or "")

    def to_dict(self) -> dict[str, Any]:
        """The settings, for a pipeline's YAML."""
        return default_to_dict(
            self,
            bundle=self.bundle,
            device=self.device,
            precision=self.precision,
            file_path_meta_field=self.file_path_meta_field,
            root_path=self.root_path,
        )

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed the pictures; the documents keep their order and ids.

        Raises:
            InvalidQueryError: a document has neither a blob nor a path.
            ImageError: a picture cannot be read.
        """
        pictures = [self._picture(document) for document in documents]
        vectors = self._opened().images(pictures).tolist() if pictures else []
        embedded = [replace(each, embedding=vector) for each, vector in zip(documents, vectors, strict=True)]
        return {"documents": embedded}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, documents)

    def _picture(self, document: Document) -> ImageLike:
        if document.blob is not None:
            return document.blob.data
        path = document.meta.get(self.file_path_meta_field)
        if not isinstance(path, str | Path):
            raise InvalidQueryError(
                f"document {document.id} has neither a blob nor a path in meta[{self.file_path_meta_field!r}]"
            )
        return Path(self.root_path, path)

"""Composition of one server: bundle and collection in, ASGI application out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

import mcip_qdrant
from mcip_qdrant.manifest import Precision
from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.server.archive import Archive
from mcip_qdrant.server.embedder import Embedder
from mcip_qdrant.server.embedding_schemas import Model
from mcip_qdrant.server.embeddings_api import embeddings_router
from mcip_qdrant.server.guard import Guard
from mcip_qdrant.server.metrics import Metrics
from mcip_qdrant.server.page import page_router
from mcip_qdrant.server.problems import install, responses
from mcip_qdrant.server.search_api import search_router
from mcip_qdrant.server.settings import ServerSettings
from mcip_qdrant.server.thumbnails import Thumbnails, thumbnails_router
from mcip_qdrant.store import Store

_DESCRIPTION = """One model, one space: vectors of words and pictures, and the collection that holds such vectors.

Answers that are not successes have the form `{"error": {"message", "type", "param", "code"}}`. 503 comes with `Retry-After`."""


class Health(BaseModel):
    """Whether the model answers."""

    status: Literal["ok", "stuck"]
    model: str


def build_app(
    encoder: QueryEncoder,
    settings: ServerSettings,
    *,
    precision: Precision,
    provider: str,
    store: Store | None = None,
    collection: str = "images",
    on_ready: Callable[[], object] = lambda: None,
) -> Guard:
    """The application, behind its guard.

    Args:
        precision: of the graphs that the encoder runs.
        provider: ONNX Runtime's execution provider that they run on.
        store: None for embeddings only.
        on_ready: called once requests can be answered.
    """
    manifest = encoder.bundle.manifest
    metrics = Metrics()
    metrics.say_model(manifest.model, manifest.space_id, provider)
    embedder = Embedder(encoder, row_by_row=precision == "int8", limits=settings.limits, metrics=metrics)
    archive = None if store is None else Archive(store, collection, encoder, patience_s=settings.limits.patience_s)
    thumbnails = Thumbnails(settings.roots, settings.limits)
    model = Model(
        id=manifest.model,
        space_id=manifest.space_id,
        embedding_dim=manifest.embedding_dim,
        context_length=manifest.tokenizer.context_length,
        precision=precision,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with embedder.running():
            on_ready()
            yield
        if archive is not None:
            archive.close()

    app = FastAPI(
        title="mcip-qdrant",
        version=mcip_qdrant.__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    install(app)
    app.include_router(embeddings_router(embedder, model))
    app.include_router(search_router(embedder, archive, thumbnails, model))
    app.include_router(thumbnails_router(archive, thumbnails))
    app.include_router(_operations_router(embedder, metrics, settings, model))
    app.include_router(page_router())
    app.openapi = lambda: _openapi(app, with_key=settings.key is not None)  # type: ignore[method-assign]
    # Outside everything else, so that not even the answer to a failure of ours goes out without it.
    return Guard(app, settings, metrics)


def _operations_router(embedder: Embedder, metrics: Metrics, settings: ServerSettings, model: Model) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/health", responses={503: {"model": Health, "description": "The model does not answer any more"}})
    async def health(response: Response) -> Health:
        """Whether the model answers. Asks Qdrant nothing: its absence is no reason to restart this server."""
        stuck = embedder.stuck_for() > settings.limits.stall_s
        response.status_code = 503 if stuck else 200
        return Health(status="stuck" if stuck else "ok", model=model.id)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format"}, **responses()},
    )
    async def exposition() -> Response:
        """Requests, batches and queues."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router


def _openapi(app: FastAPI, *, with_key: bool) -> dict[str, Any]:
    if app.openapi_schema:
        return app.openapi_schema
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # what FastAPI would answer; here that is a 400
    schemas = schema["components"]["schemas"]
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    if with_key:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        schema["paths"]["/health"]["get"]["security"] = []
    app.openapi_schema = schema
    return schema

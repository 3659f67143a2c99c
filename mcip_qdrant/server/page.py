"""The files that browsers load: the page at `/`, and the OpenAPI page at `/docs`. Nothing comes from another host."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_OWN = ("app.js", "api.js", "facets.js", "hits.js", "query.js", "style.css", "docs.js", "icon.svg")
_SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:{more}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# No script can write markup: what file names and payloads hold can only ever become text.
_PAGE_POLICY = _POLICY.format(more="") + "; require-trusted-types-for 'script'; trusted-types 'none'"
_DOCS_POLICY = _POLICY.format(more=" data:")


def page_router() -> APIRouter:
    """Routes that need no key, because they hold no data."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Response:
        return _file(request, own_file("index.html"), policy=_PAGE_POLICY)

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        return _file(request, own_file("docs.html"), policy=_DOCS_POLICY)

    @router.get("/favicon.ico")
    async def favicon(request: Request) -> Response:
        return _file(request, own_file("icon.svg"))

    @router.get("/static/{name}")
    async def static(request: Request, name: str) -> Response:
        # A list of names instead of a folder: there is no path to escape from.
        return _file(request, own_file(name)) if name in _OWN else _missing()

    @router.get("/docs/{name}")
    async def swagger(request: Request, name: str) -> Response:
        return _file(request, swagger_file(name)) if name in _SWAGGER else _missing()

    return router


@cache
def own_file(name: str) -> tuple[str, bytes, str]:
    """Name, content and ETag of a file in `static/`."""
    content = files("mcip_qdrant.server").joinpath("static", name).read_bytes()
    return name, content, _tag(content)


@cache
def swagger_file(name: str) -> tuple[str, bytes, str]:
    """Name, content and ETag of a file of Swagger UI, which the package fastapi-offline brings along."""
    import fastapi_offline

    content = (Path(fastapi_offline.__file__).parent / "static" / name).read_bytes()
    return name, content, _tag(content)


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _missing() -> Response:
    return PlainTextResponse("not found\n", status_code=404)


def _file(request: Request, file: tuple[str, bytes, str], *, policy: str | None = None) -> Response:
    name, content, tag = file
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if policy is not None:
        headers["Content-Security-Policy"] = policy
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_TYPES[Path(name).suffix], headers=headers)

"""Errors -> HTTP answers, in the form that OpenAI's clients read; nothing of the server's inside gets out."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from mcip_qdrant.errors import (
    ForeignCollectionError,
    ImageError,
    InvalidQueryError,
    McipError,
    SpaceMismatchError,
    StoreError,
    StoreUnavailableError,
)
from mcip_qdrant.server.access import Refusal
from mcip_qdrant.server.batching import OverloadedError

logger = logging.getLogger(__name__)

_STORE_RETRY_S = 5
# In a location, pydantic also names the branches of unions: `str`, `list[…]`, `TextPart`, our tags.
_FIELD = re.compile(r"(?!(str|list|bool|float|int|dict|json|constrained-str)$)[a-z]\w*")


class Problem(BaseModel):
    """What went wrong, as OpenAI's API says it."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = None
    code: str | None = None


class ProblemAnswer(BaseModel):
    """Body of every answer that is not a success."""

    error: Problem


class NoCollectionError(McipError):
    """This server has no collection to search, or the collection has no such image."""


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route's documentation says of answers that are not successes."""
    every = {400, 401, 403, 408, 413, 415, 421, 500, 503, *statuses}
    return {
        status: {"model": ProblemAnswer, "description": _DESCRIPTIONS.get(status, HTTPStatus(status).phrase)}
        for status in sorted(every)
    }


_DESCRIPTIONS = {
    400: "The request makes no sense; the message says why",
    401: "The server has an API key, and the request has not",
    403: "The request comes from another website",
    404: "No such collection or image",
    408: "The request's body came in too slowly",
    409: "The collection holds another model's vectors",
    413: "The request's body is larger than the server allows",
    421: "The server does not go by this name",
    502: "Qdrant refused or does not make sense",
    503: "Overloaded, or Qdrant is away; Retry-After says when to ask again",
}


def install(app: FastAPI) -> None:
    """Answer every error of this application's routes."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(McipError, _ours)
    app.add_exception_handler(Exception, _unexpected)


def answer(
    status: int, message: str, *, code: str | None = None, param: str | None = None, retry_after_s: int | None = None
) -> JSONResponse:
    """One answer."""
    kind = {401: "authentication_error", 403: "permission_error", 503: "overloaded_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    body = ProblemAnswer(error=Problem(message=_encodable(message), type=kind, param=param, code=code))
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def refused(refusal: Refusal) -> JSONResponse:
    """The answer to a request that reached no route."""
    return answer(refusal.status, refusal.message, code=refusal.code, retry_after_s=refusal.retry_after_s)


def _encodable(message: str) -> str:
    """Half characters out of a request cannot be sent back."""
    return message.encode("utf-8", "replace").decode()


async def _invalid(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)  # noqa: S101 - FastAPI calls it with nothing else
    # Where a field may be one thing or another, there is an error for each. Ours say what to do, one about a value comes from the
    # branch that had the right type, and longer ways lead to what the client probably meant.
    error = max(
        exc.errors(),
        key=lambda one: (one["type"] == "value_error", not one["type"].endswith("_type"), len(one["loc"])),
    )
    if error["type"] == "json_invalid":
        return answer(400, "the body is not JSON", code="not_json")
    where = ".".join(str(part) for part in error["loc"][1:] if isinstance(part, int) or _FIELD.fullmatch(str(part)))
    message = str(error["msg"]).removeprefix("Value error, ")
    return answer(400, f"{where}: {message}" if where else message, param=where or None)


async def _http(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)  # noqa: S101
    made = answer(exc.status_code, str(exc.detail))
    made.headers.update(exc.headers or {})
    return made


async def _ours(request: Request, exc: Exception) -> Response:
    match exc:
        case OverloadedError():
            return answer(503, str(exc), code="overloaded", retry_after_s=exc.retry_after_s)
        case ImageError():
            return answer(400, str(exc), code=exc.reason.value)
        case InvalidQueryError():
            return answer(400, str(exc), code="invalid_query")
        case NoCollectionError():
            return answer(404, str(exc), code="not_found")
        case SpaceMismatchError() | ForeignCollectionError():
            return answer(409, str(exc), code="space_mismatch")
    logger.warning("%s %s: %s", request.method, request.url.path, exc)
    if isinstance(exc, StoreUnavailableError):
        message = "the collection cannot be reached right now; try again in a few seconds"
        return answer(503, message, code="qdrant_unavailable", retry_after_s=_STORE_RETRY_S)
    if isinstance(exc, StoreError):
        return answer(502, "Qdrant refused this; the server's log says why", code="qdrant_refused")
    return answer(500, "the server cannot answer this; its log says why", code="misconfigured")


async def _unexpected(_request: Request, _exc: Exception) -> Response:
    # Starlette raises the exception again after this answer, so that it reaches the log with its traceback.
    return answer(500, "the server failed; its log says why", code="internal_error")

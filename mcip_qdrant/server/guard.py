"""The gate in front of every route: access, body limits, overload, security headers, and time limits on slow clients."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcip_qdrant.server.access import BODY_PATHS, Head, Refusal, refusal
from mcip_qdrant.server.metrics import Metrics
from mcip_qdrant.server.problems import refused
from mcip_qdrant.server.settings import Limits, ServerSettings

logger = logging.getLogger(__name__)

_HEADERS = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
    b"cache-control": b"no-store",
}
"""Sent with every answer, unless its route says otherwise."""

_ALWAYS_ANSWERED = frozenset({"/health", "/metrics"})
_DRAIN_S = 3.0
_ENDING = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "shutting_down", "the server ends before it could answer this; try again", 5
)


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.refusal = Refusal(status, code, message, retry_after_s)


class Guard:
    """ASGI middleware. Hands bodies on whole or not at all, so that no route ever waits for a client."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._limits: Limits = settings.limits
        self._metrics = metrics
        self._in_flight = 0
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = monotonic()
        answering = _Answering(send, self._limits.send_timeout_s)
        self._in_flight += 1
        self._metrics.in_flight(1)
        try:
            await self._answer(scope, receive, answering)
        except _SlowReaderError:
            # uvicorn closes the connection of an answer that was not finished.
            logger.info("%s %s: the client stopped reading", scope["method"], scope["path"])
        except asyncio.CancelledError:
            # uvicorn ends, and has waited for this request as long as it may.
            if answering.status:
                raise
            answering.closes = True
            await refused(_ENDING)(scope, receive, answering)
        finally:
            self._in_flight -= 1
            self._metrics.in_flight(-1)
            route = getattr(scope.get("route"), "path", None) or "other"
            self._metrics.request(route, answering.status, monotonic() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: _Answering) -> None:
        head = Head(scope["method"], scope["path"], dict(scope["headers"]))
        # A body that is not read to its end would hold up the connection for as long as its sender likes.
        send.closes = _announces_body(head)
        body = bytearray()
        try:
            try:
                await self._admit(head, receive, body)
            except _RefusedError as exc:
                self._give_back(body)
                await self._refuse(exc.refusal, head, scope, receive, send)
                return
            if _takes_body(head):
                send.closes = False
            elif send.closes and head.method == "POST":
                await _drain(receive)
            await self._app(scope, _replay(bytes(body), receive), send)
        finally:
            self._give_back(body)

    async def _admit(self, head: Head, receive: Receive, body: bytearray) -> None:
        if (why := refusal(head, self._settings)) is not None:
            raise _RefusedError(why.status, why.code, why.message)
        if self._in_flight > self._limits.requests_at_once and head.path not in _ALWAYS_ANSWERED:
            raise _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "too many requests at once; try again", 1)
        if _takes_body(head):
            self._check_length(_announced_length(head))
            await self._read(receive, body)

    def _give_back(self, body: bytearray) -> None:
        """Return a body's bytes to the budget of all bodies, and to the memory."""
        self._buffered -= len(body)
        body.clear()

    def _check_length(self, length: int) -> None:
        most = self._limits.max_body_bytes
        if length > most:
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", f"the body is larger than {most:,} bytes"
            )

    async def _read(self, receive: Receive, body: bytearray) -> None:
        """Read the body; what has come is taken out of the budget of all bodies, not what was announced."""
        limits = self._limits
        due = monotonic() + limits.upload_grace_s
        try:
            while True:
                async with asyncio.timeout(max(0.0, due - monotonic())):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    raise _RefusedError(HTTPStatus.BAD_REQUEST, "disconnected", "the client went away")
                more = message.get("body", b"")
                # However much came before: a client that stops sending does not keep its share of the budget for long.
                due = min(monotonic() + limits.upload_grace_s, due + len(more) / limits.min_bytes_per_s)
                self._check_length(len(body) + len(more))
                if self._buffered + len(more) > limits.buffered_bytes:
                    raise _RefusedError(
                        HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "too many uploads at once; try again", 1
                    )
                body += more
                self._buffered += len(more)
                if not message.get("more_body", False):
                    return
        except TimeoutError:
            raise _RefusedError(HTTPStatus.REQUEST_TIMEOUT, "slow_upload", "the body came in too slowly") from None

    async def _refuse(self, why: Refusal, head: Head, scope: Scope, receive: Receive, send: _Answering) -> None:
        if send.closes and head.method == "POST" and why.status != HTTPStatus.REQUEST_TIMEOUT:
            await _drain(receive)
        await refused(why)(scope, receive, send)


def _takes_body(head: Head) -> bool:
    return head.method == "POST" and head.path in BODY_PATHS


def _announced_length(head: Head) -> int:
    """Of the body as its head tells it; 0 where it tells none."""
    length = head.headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() else 0


def _announces_body(head: Head) -> bool:
    return b"transfer-encoding" in head.headers or _announced_length(head) > 0


async def _drain(receive: Receive) -> None:
    """Throw away a body for a moment: closing on a client that is still sending would cost it our answer."""
    try:
        async with asyncio.timeout(_DRAIN_S):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        return


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the whole body at once, then whatever the server says."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


class _SlowReaderError(Exception):
    """The client takes no bytes of the answer."""


class _Answering:
    """A `send` that adds the security headers, notes the status, and gives up on clients that do not read.

    With `closes`, the connection ends with the answer.
    """

    def __init__(self, send: Send, timeout_s: float) -> None:
        self._send = send
        self._timeout_s = timeout_s
        self.status = 0
        self.closes = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            present = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in _HEADERS.items() if name not in present]
            if self.closes:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError:
            raise _SlowReaderError from None

"""Who may ask: names the server answers to, origins it answers, and the API key. Pure functions of a request's head."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from mcip_qdrant.server.settings import ServerSettings, host_name, is_loopback

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/health", "/favicon.ico"})
OPEN_FOLDERS = ("/static/", "/docs/")
"""Answered without a key: the page's own files, which hold no data, and `/health`."""

BODY_PATHS = frozenset({"/v1/embeddings", "/v1/search", "/v1/facets"})
"""The only ones that take a body; elsewhere it is not even read."""

_PAGES = frozenset({"/", "/docs"})


@dataclass(frozen=True, slots=True)
class Head:
    """The parts of a request's head that decide: method, path, and headers by lower-case name (the last of each)."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered."""

    status: HTTPStatus
    code: str
    message: str
    retry_after_s: int | None = None


def refusal(head: Head, settings: ServerSettings) -> Refusal | None:
    """Why this request must not reach a route, or None if it may.

    * `Host` must be a name of this server. Without that, a website could point its own name at 127.0.0.1 and read answers
      as if they were its own (DNS rebinding).
    * Browsers say where a request comes from (`Origin`, `Sec-Fetch-Site`): other sites get nothing, a person who follows a link
      to the page gets the page.
    * A body must be declared as JSON: other types are what HTML forms of any site can send without asking first.
    * With a key set, everything that holds data needs it.
    """
    if head.path == "/health":
        return None  # asked by address, from anywhere, by what starts and stops servers
    return _wrong_host(head, settings) or _foreign(head, settings) or _not_json(head) or _no_key(head, settings)


def _wrong_host(head: Head, settings: ServerSettings) -> Refusal | None:
    name = host_name(head.headers.get(b"host", b"").decode("latin-1"))
    known = name in settings.allowed_hosts or name == "localhost" or is_loopback(name)
    # A key protects from rebinding by itself; then names count only where somebody said which.
    if known or (settings.key is not None and not settings.allowed_hosts):
        return None
    message = f"this server is not called {name[:100]!r}; start it with --allowed-host to give it that name"
    return Refusal(HTTPStatus.MISDIRECTED_REQUEST, "wrong_host", message)


def _foreign(head: Head, settings: ServerSettings) -> Refusal | None:
    site = head.headers.get(b"sec-fetch-site", b"none")
    mode = head.headers.get(b"sec-fetch-mode", b"navigate")
    follows_link = head.method == "GET" and head.path in _PAGES and mode == b"navigate"
    if _own_origin(head, settings) and (site in {b"none", b"same-origin"} or follows_link):
        return None
    message = "requests from other websites are not answered; call this server from your own back end"
    return Refusal(HTTPStatus.FORBIDDEN, "cross_site", message)


def _own_origin(head: Head, settings: ServerSettings) -> bool:
    origin = head.headers.get(b"origin")
    if origin is None:
        return True
    host = origin.partition(b"://")[2].lower()
    # A proxy may have put another name into Host.
    return host == head.headers.get(b"host", b"").strip().lower() or (
        host_name(host.decode("latin-1")) in settings.allowed_hosts
    )


def _not_json(head: Head) -> Refusal | None:
    if head.method != "POST" or head.path not in BODY_PATHS:
        return None
    kind = head.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind == b"application/json":
        return None
    return Refusal(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not_json", "send the request as JSON, with Content-Type: application/json"
    )


def _no_key(head: Head, settings: ServerSettings) -> Refusal | None:
    if settings.key is None or head.path in OPEN_PATHS or head.path.startswith(OPEN_FOLDERS):
        return None
    scheme, _, given = head.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), settings.key.encode()):
        return None
    message = (
        "this is not the API key of this server"
        if scheme.lower() == b"bearer" and given.strip()
        else "an API key is needed here: send it as Authorization: Bearer KEY"
    )
    return Refusal(HTTPStatus.UNAUTHORIZED, "invalid_api_key", message)

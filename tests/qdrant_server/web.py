"""HTTP/1.1 around it, with connections kept alive and a thread for each."""

from __future__ import annotations

import hmac
import json
import logging
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_server.catalog import Catalog
from qdrant_server.errors import ApiError
from qdrant_server.routes import answer

logger = logging.getLogger(__name__)

# The release whose engine qdrant-edge-py 0.9 carries.
VERSION = "1.20.1"
_LARGEST_BODY = 32 * 1024 * 1024
_PLAIN = {
    "/healthz": "healthz check passed",
    "/livez": "healthz check passed",
    "/readyz": "all shards are ready",
}


class Server(ThreadingHTTPServer):
    """The server, and what its handlers share."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], catalog: Catalog, api_key: str | None) -> None:
        super().__init__(address, Handler)
        self.catalog = catalog
        self.api_key = api_key


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet: two would each wait for the other side's delayed acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing per request."""

    def _answer(self) -> None:
        started = time.perf_counter()
        try:
            content = self._content()
            if self.command == "GET" and self.path in {"/", *_PLAIN}:
                self._open_page()
                return
            if not self._allowed():
                return
            result = answer(self.server.catalog, self.command, self.path, content)
            status, said = 200, {"result": result, "status": "ok"}
        except ApiError as exc:
            status, said = exc.status, {"status": {"error": exc.message}}
        except Exception as exc:
            logger.exception("%s %s", self.command, self.path)
            status, said = 500, {"status": {"error": f"Service internal error: {exc!r}"}}
        self._send_json(status, {**said, "time": time.perf_counter() - started})

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 - http.server looks for these names

    def _content(self) -> bytes:
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise ApiError(411, "Length Required")
        length = int(self.headers.get("Content-Length") or 0)
        if length <= _LARGEST_BODY:
            return self.rfile.read(length)
        left = length
        while left > 0:  # read it all the same: a client that still writes would not see the answer
            left -= len(self.rfile.read(min(left, 1 << 20))) or left
        raise ApiError(
            400, f"Payload error: JSON payload ({length} bytes) is larger than allowed (limit: {_LARGEST_BODY} bytes)."
        )

    def _open_page(self) -> None:
        if self.path == "/":
            about = {"title": "qdrant - vector search engine", "version": VERSION, "commit": "test-server"}
            self._send_json(200, about)
        else:
            self._send(200, "text/plain; charset=utf-8", _PLAIN[self.path].encode())

    def _allowed(self) -> bool:
        wanted = self.server.api_key
        if wanted is None:
            return True
        given = self.headers.get("api-key") or (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if given and hmac.compare_digest(given.encode(), wanted.encode()):
            return True
        why = "Invalid API key or JWT" if given else "Must provide an API key or an Authorization bearer token"
        self._send(401, "text/plain; charset=utf-8", why.encode())
        return False

    def _send_json(self, status: int, said: Any) -> None:
        self._send(status, "application/json", json.dumps(said, ensure_ascii=False).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle(self) -> None:
        """Serve the connection; a client that goes away is no error."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

"""An HTTP proxy in front of a service, that fails on purpose: the network and the overload that tests cannot wait for."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self, cast, get_args
from urllib.parse import urlsplit

Mode = Literal["pass", "429", "503", "slow", "cut", "refuse"]

_UPSTREAM_TIMEOUT_S = 60
# Between two connections only; everything else is forwarded.
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "te", "trailer", "upgrade"})


class FaultProxy:
    """Forwards to `target_url`, or fails in the way of the moment.

    - `pass`: forwards.
    - `429`, `503`: answers that, in Qdrant's error format, and forwards nothing; every other 429 has `Retry-After: 1`.
    - `slow`: forwards, and keeps the answer back for `delay` seconds.
    - `cut`: forwards, waits until the target has answered, and closes the connection instead of passing that on: the request
      was carried out and its sender cannot know.
    - `refuse`: closes the connection before anything is forwarded.

    What a request meets: first what `fail_next` ordered, then a throw of `fail_share`'s dice, then `mode`. A target that is away
    looks like `refuse` and is counted as `unreachable`.
    """

    def __init__(self, target_url: str, *, delay: float = 1.0) -> None:
        target = urlsplit(target_url)
        if target.scheme != "http" or not target.hostname:
            raise ValueError(f"expected http://HOST:PORT, not {target_url!r}")
        self.target = (target.hostname, target.port or 80)
        self.delay = delay
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._mode: Mode = "pass"
        self._ordered: list[Mode] = []
        self._share = 0.0
        self._share_mode: Mode = "pass"
        self._random = random.Random(0)
        self._counts: Counter[str] = Counter()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="fault proxy", daemon=True
        )

    @property
    def mode(self) -> Mode:
        """What happens to requests that nothing else was ordered for."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = _known(mode)

    @property
    def counts(self) -> Counter[str]:
        """Requests so far, by what they met. Adding them up gives all."""
        with self._lock:
            return Counter(self._counts)

    def fail_next(self, requests: int, mode: Mode) -> None:
        """Treat that many of the coming requests so; several orders queue up."""
        with self._lock:
            self._ordered += [_known(mode)] * requests

    def fail_share(self, share: float, mode: Mode, seed: int = 0) -> None:
        """Treat a random share (0..1) of all requests so; 0 ends it."""
        with self._lock:
            self._share, self._share_mode, self._random = share, _known(mode), random.Random(seed)

    def next_mode(self) -> Mode:
        """What the request that just arrived meets."""
        with self._lock:
            if self._ordered:
                return self._ordered.pop(0)
            if self._share and self._random.random() < self._share:
                return self._share_mode
            return self._mode

    def count(self, what: str) -> int:
        """Note what a request met; returns how many met the same, this one included."""
        with self._lock:
            self._counts[what] += 1
            return self._counts[what]

    def close(self) -> None:
        """Cut all connections and end all threads."""
        self.closing.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.cut_connections()
        self._server.server_close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _known(mode: Mode) -> Mode:
    if mode not in get_args(Mode):
        raise ValueError(f"unknown mode {mode!r}; there are {', '.join(get_args(Mode))}")
    return mode


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for them
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    @contextlib.contextmanager
    def watched(self, connection: socket.socket) -> Iterator[None]:
        """A connection to the target that `cut_connections` cuts as well."""
        with self._lock:
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)

    def cut_connections(self) -> None:
        """Wake the threads that wait for a client's next request or the target's answer."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that went away is no error here
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet

    @property
    def proxy(self) -> FaultProxy:
        return cast("_Server", self.server).proxy

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing per request."""

    def _relay(self) -> None:
        mode = self.proxy.next_mode()
        if mode == "refuse":
            self.proxy.count(mode)
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if mode in {"429", "503"}:
            self._fail(int(mode), self.proxy.count(mode))
            return
        try:
            status, headers, content = self._forward(body)
        except (OSError, http.client.HTTPException):
            self.proxy.count("unreachable")
            self.close_connection = True
            return
        self.proxy.count(mode)
        if mode == "slow":
            self.proxy.closing.wait(self.proxy.delay)
        if mode == "cut" or self.proxy.closing.is_set():
            self.close_connection = True
            return
        self._send(status, headers, content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _relay  # noqa: N815 - http.server looks for these names

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """The target's answer. A connection for each request: one kept alive would fail after the target was started again."""
        server = cast("_Server", self.server)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        upstream = http.client.HTTPConnection(*self.proxy.target, timeout=_UPSTREAM_TIMEOUT_S)
        with contextlib.closing(upstream):
            upstream.connect()
            with server.watched(upstream.sock):
                upstream.request(self.command, self.path, body or None, headers)
                answer = upstream.getresponse()
                return answer.status, answer.getheaders(), answer.read()

    def _fail(self, status: int, number: int) -> None:
        headers = [("Content-Type", "application/json")]
        # Qdrant says when to come back if it knows; qdrant-client raises different errors with and without.
        if status == 429 and number % 2 == 1:
            headers.append(("Retry-After", "1"))
        why = {429: "Rate limiting exceeded: the proxy says so", 503: "Service unavailable: the proxy says so"}
        self._send(status, headers, json.dumps({"status": {"error": why[status]}, "time": 0.0}).encode())

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

"""The proxy forwards faithfully, and fails the way it says."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from fault_proxy import FaultProxy
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse


class Echo(ThreadingHTTPServer):
    """Answers with what it was sent, and remembers it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _EchoHandler)
        self.seen: list[tuple[str, str, bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class _EchoHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing."""

    def _echo(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen: Any = self.server
        seen.seen.append((self.command, self.path, body))
        self.send_response(418 if self.path == "/teapot" else 200)
        self.send_header("X-Asked-For", self.headers.get("X-Ask", ""))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _echo  # noqa: N815


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.stop()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(echo.url, delay=0.3) as running:
        yield running


@pytest.fixture
def line(proxy: FaultProxy) -> Iterator[http.client.HTTPConnection]:
    """A connection that is kept alive."""
    where = urlsplit(proxy.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
    yield connection
    connection.close()


def ask(
    line: http.client.HTTPConnection, method: str = "GET", path: str = "/", body: bytes | None = None, **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    try:
        line.request(method, path, body, headers)
        answer = line.getresponse()
        return answer.status, answer.read(), answer.headers
    except (OSError, http.client.HTTPException):
        line.close()  # so that the next request opens a new one
        raise


def test_requests_pass_unchanged_over_one_connection(
    echo: Echo, proxy: FaultProxy, line: http.client.HTTPConnection
) -> None:
    body = bytes(range(256)) * 5000
    status, said, headers = ask(line, "PUT", "/collections/a%2Fb?wait=true", body, **{"X-Ask": "yes"})
    first = line.sock
    assert (status, said, headers["X-Asked-For"]) == (200, body, "yes")
    assert echo.seen == [("PUT", "/collections/a%2Fb?wait=true", body)]
    assert ask(line, "GET", "/teapot")[:2] == (418, b"")
    assert line.sock is first
    assert proxy.counts == {"pass": 2}


def test_429_says_every_other_time_when_to_come_back(
    echo: Echo, proxy: FaultProxy, line: http.client.HTTPConnection
) -> None:
    proxy.mode = "429"
    answers = [ask(line, "POST", "/", b"x" * 100_000) for _ in range(4)]
    assert [status for status, _, _ in answers] == [429] * 4
    assert [headers.get("Retry-After") for _, _, headers in answers] == ["1", None, "1", None]
    assert b'{"status": {"error": ' in answers[0][1]
    assert (echo.seen, proxy.counts) == ([], {"429": 4})


def test_503_forwards_nothing(echo: Echo, proxy: FaultProxy, line: http.client.HTTPConnection) -> None:
    proxy.mode = "503"
    assert ask(line)[0] == 503
    proxy.mode = "pass"
    assert ask(line)[0] == 200
    assert (len(echo.seen), proxy.counts) == (1, {"503": 1, "pass": 1})


def test_slow_answers_late(echo: Echo, proxy: FaultProxy, line: http.client.HTTPConnection) -> None:
    proxy.mode = "slow"
    started = time.monotonic()
    assert ask(line)[0] == 200
    assert time.monotonic() - started >= 0.3
    assert proxy.counts == {"slow": 1}


def test_a_client_that_does_not_wait_disturbs_nobody(
    echo: Echo, proxy: FaultProxy, line: http.client.HTTPConnection, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.mode = "slow"
    line.timeout = 0.05
    with pytest.raises(TimeoutError):
        ask(line, "POST", "/", b"x" * 1_000_000)
    proxy.mode = "pass"
    line.timeout = 10
    assert ask(line)[0] == 200
    proxy.close()
    assert capsys.readouterr().err == ""


def test_cut_carries_the_request_out(echo: Echo, proxy: FaultProxy, line: http.client.HTTPConnection) -> None:
    proxy.mode = "cut"
    with pytest.raises(http.client.RemoteDisconnected):
        ask(line, "PUT", "/points", b"1")
    assert (echo.seen, proxy.counts) == ([("PUT", "/points", b"1")], {"cut": 1})


def test_refuse_carries_nothing_out(echo: Echo, proxy: FaultProxy, line: http.client.HTTPConnection) -> None:
    assert ask(line)[0] == 200
    proxy.mode = "refuse"
    for _ in range(2):  # on a connection that was open, and on a new one
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            ask(line, "PUT", "/points", b"1" * 100_000)
    assert (len(echo.seen), proxy.counts) == (1, {"pass": 1, "refuse": 2})


def test_the_next_requests_are_ordered_for(proxy: FaultProxy, line: http.client.HTTPConnection) -> None:
    proxy.mode = "503"
    proxy.fail_next(2, "429")
    proxy.fail_next(1, "pass")
    assert [ask(line)[0] for _ in range(5)] == [429, 429, 200, 503, 503]


def test_a_share_fails_by_chance_and_the_same_each_time(proxy: FaultProxy, line: http.client.HTTPConnection) -> None:
    rounds = []
    for _ in range(2):
        proxy.fail_share(0.3, "503", seed=4)
        rounds.append([ask(line)[0] for _ in range(60)])
    assert rounds[0] == rounds[1]
    assert 8 < rounds[0].count(503) < 30
    proxy.fail_share(0, "503")
    assert ask(line)[0] == 200
    assert proxy.counts == {"503": 2 * rounds[0].count(503), "pass": 2 * rounds[0].count(200) + 1}


def test_a_target_that_is_away_and_comes_back(echo: Echo, proxy: FaultProxy, line: http.client.HTTPConnection) -> None:
    assert ask(line)[0] == 200
    echo.stop()
    with pytest.raises(http.client.RemoteDisconnected):
        ask(line)
    again = Echo(port=echo.server_port)
    try:
        assert ask(line)[0] == 200
    finally:
        again.stop()
    assert proxy.counts == {"pass": 2, "unreachable": 1}


def test_many_connections_at_once(echo: Echo, proxy: FaultProxy) -> None:
    proxy.fail_share(0.5, "429")
    where = urlsplit(proxy.url)

    def work(_number: int) -> int:
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
        try:
            return sum(ask(connection, "POST", "/", b"x")[0] == 200 for _ in range(20))
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        passed = sum(pool.map(work, range(8)))
    assert proxy.counts == {"pass": passed, "429": 160 - passed}
    assert len(echo.seen) == passed


def test_qdrant_client_sees_the_errors_it_knows(proxy: FaultProxy) -> None:
    client = QdrantClient(url=proxy.url, check_compatibility=False, timeout=5)
    try:
        for mode, error in (
            ("429", ResourceExhaustedResponse),
            ("429", UnexpectedResponse),
            ("503", UnexpectedResponse),
            ("cut", ResponseHandlingException),
            ("refuse", ResponseHandlingException),
        ):
            proxy.fail_next(1, mode)  # type: ignore[arg-type]
            with pytest.raises(error):
                client.get_collections()
    finally:
        client.close()


def test_closing_does_not_wait_for_anybody() -> None:
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with FaultProxy(f"http://127.0.0.1:{port}") as proxy:
            where = urlsplit(proxy.url)
            idle = socket.create_connection((where.hostname, where.port))
            waiting = socket.create_connection((where.hostname, where.port))
            waiting.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            accepted, _ = silent.accept()
            started = time.monotonic()
        assert time.monotonic() - started < 5
        assert idle.recv(1) == waiting.recv(1) == b""
        for one in (idle, waiting, accepted):
            one.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("wrong", ["", "redis://localhost:1", "localhost:6333"])
def test_only_http_targets(wrong: str) -> None:
    with pytest.raises(ValueError, match="expected http://"):
        FaultProxy(wrong)


def test_unknown_modes_are_refused(proxy: FaultProxy) -> None:
    for change in (
        lambda: setattr(proxy, "mode", "502"),
        lambda: proxy.fail_next(1, "no"),  # type: ignore[arg-type]
        lambda: proxy.fail_share(0.1, "no"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="unknown mode"):
            change()

"""Clients that send too much, too slowly, too often or too cleverly, and a server that others could reach."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from conftest import Exported
from server_support import Shown, in_thread, refused, serving

from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.server.settings import Limits

MIB = 1 << 20
SMALL = Limits(
    max_body_bytes=MIB,
    buffered_bytes=2 * MIB,
    upload_grace_s=1.0,
    header_timeout_s=0.8,
    connections=40,
    requests_at_once=12,
    min_bytes_per_s=50_000_000,
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


@pytest.fixture(scope="module")
def encoder(clip: Exported) -> Iterator[QueryEncoder]:
    """The model, in this process."""
    with QueryEncoder.open(clip.folder, device="cpu", threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def small(encoder: QueryEncoder) -> Iterator[str]:
    """A server with limits that a test can reach."""
    with in_thread(encoder, SMALL) as url:
        yield url


def get(url: str) -> httpx.Response:
    """GET, with patience for a busy machine."""
    return httpx.get(url, timeout=60)


def post(url: str, **options: Any) -> httpx.Response:
    """POST, with patience for a busy machine."""
    return httpx.post(url, timeout=60, **options)


def eventually(ask: Callable[[], httpx.Response], status: int, within_s: float = 20) -> httpx.Response:
    """Ask until the answer has this status."""
    deadline = time.monotonic() + within_s
    while (answer := ask()).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    return answer


def connect(url: str) -> socket.socket:
    """A raw connection."""
    where = urlsplit(url)
    assert where.hostname is not None
    return socket.create_connection((where.hostname, where.port or 0), timeout=10)


def everything(line: socket.socket) -> bytes:
    """All that the server sends until it closes."""
    return b"".join(iter(lambda: line.recv(65536), b""))


def head(length: int | None = None) -> bytes:
    """The head of an embeddings request."""
    how = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{how}\r\n\r\n".encode()
    )


# Every answer carries the headers.


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", path, 200) for path in ("/", "/docs", "/openapi.json", "/health", "/metrics", "/v1/models")),
        *(
            ("GET", path, 200)
            for path in ("/static/app.js", "/static/style.css", "/docs/swagger-ui.css", "/favicon.ico")
        ),
        *(("GET", path, 404) for path in ("/nothing", "/static/nothing", "/v1/thumbnails/..%2Fx/y")),
        ("GET", "/v1/search", 405),
        ("OPTIONS", "/v1/search", 405),
        ("POST", "/v1/search", 415),
        ("HEAD", "/v1/models", 405),
    ],
)
def test_every_answer_is_marked(shown: Shown, method: str, path: str, status: int) -> None:
    answer = shown.served.http.request(method, path)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers


def test_the_page_s_files_are_revalidated_by_their_content(shown: Shown) -> None:
    first = shown.served.http.get("/static/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = shown.served.http.get("/static/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_another_site_s_requests_do_not_arrive(shown: Shown) -> None:
    body = {"input": "x"}
    assert shown.served.post("/v1/embeddings", body, headers={"Host": "evil.example"}).status_code == 421
    assert shown.served.post("/v1/embeddings", body, headers={"Origin": "https://evil.example"}).status_code == 403
    as_form = shown.served.http.post("/v1/embeddings", content=json.dumps(body), headers={"Content-Type": "text/plain"})
    assert as_form.status_code == 415


# Bodies.


def test_a_body_that_is_announced_too_large_is_refused(small: str) -> None:
    answer = post(f"{small}v1/embeddings", json={"input": "x" * (MIB + 1)})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS


def test_a_body_that_grows_too_large_is_refused(small: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"input": "'
        for _ in range(24):
            yield b"x" * 65536
        yield b'"}'

    answer = post(f"{small}v1/embeddings", content=pieces(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("length", ["-5", "many", "99999999999999999999999999"])
def test_nonsense_as_length(small: str, length: str) -> None:
    with connect(small) as line:
        line.sendall(head(5).replace(b"Content-Length: 5", f"Content-Length: {length}".encode()))
        assert everything(line)[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 413"}


def test_an_upload_that_drips_is_cut_off(small: str) -> None:
    with connect(small) as line:
        line.sendall(head(1000))
        started = time.monotonic()
        for _ in range(100):
            try:
                line.sendall(b" ")
            except OSError:
                break
            time.sleep(0.05)
            if time.monotonic() - started > 2:
                break
        answer = everything(line)
    assert answer.startswith(b"HTTP/1.1 408"), answer[:100]
    assert b"slow_upload" in answer
    assert time.monotonic() - started < 8


def test_a_head_that_drips_is_cut_off(small: str) -> None:
    with connect(small) as line:
        started = time.monotonic()
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        while time.monotonic() - started < 8:
            try:
                line.sendall(b"X: y\r\n")
            except OSError:
                break
            time.sleep(0.05)
        assert time.monotonic() - started < 6


def test_a_second_head_that_drips_is_cut_off_too(small: str) -> None:
    with connect(small) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
        line.sendall(b"GET /health HTTP/1.1\r\n")
        started = time.monotonic()
        everything(line)
        assert time.monotonic() - started < 4.5, "before the keep-alive timeout"


def test_silent_connections_make_room(small: str) -> None:
    """Connections that say nothing are closed; meanwhile one too many is told when to come back."""
    lines = [connect(small) for _ in range(SMALL.connections)]
    try:
        with connect(small) as over:
            assert b"Retry-After: 1" in everything(over)
        time.sleep(SMALL.header_timeout_s)
        assert eventually(lambda: get(f"{small}health"), 200)
    finally:
        for line in lines:
            line.close()


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\na",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
        b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\na",
        b"POST /v1/search HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 100000000\r\n\r\na",
    ],
    ids=["health", "chunked", "wrong method", "refused"],
)
def test_a_body_that_nobody_reads_does_not_keep_its_connection(small: str, request_head: bytes) -> None:
    with connect(small) as line:
        line.sendall(request_head)
        answer = line.recv(65536)
        assert answer.startswith(b"HTTP/1.1 ")
        assert b"connection: close" in answer.lower()
        line.settimeout(20)
        try:
            line.sendall(b"b")
            everything(line)
        except ConnectionError:
            return  # closed all the same


def test_a_client_that_takes_no_answer_does_not_keep_its_connection(encoder: QueryEncoder) -> None:
    with in_thread(encoder, Limits(connections=1, send_timeout_s=0.5)) as url, socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        where = urlsplit(url)
        line.connect((where.hostname, where.port))
        line.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        eventually(lambda: get(f"{url}health"), 503)
        eventually(lambda: get(f"{url}health"), 200)


def test_a_connection_goes_on_after_a_body_that_was_read(small: str) -> None:
    with httpx.Client(base_url=small, timeout=60) as client:
        for _ in range(2):
            assert "connection" not in client.post("/v1/embeddings", json={"input": "x"}).headers


def test_announcing_a_body_takes_no_room_from_others(small: str) -> None:
    lines = [connect(small) for _ in range(4)]
    try:
        for line in lines:
            line.sendall(head(MIB) + b" ")
        assert post(f"{small}v1/embeddings", json={"input": "x"}).status_code == 200
    finally:
        for line in lines:
            line.close()


def test_what_came_early_gives_no_time_to_stop_later(encoder: QueryEncoder) -> None:
    """A large part of a body at once, then nothing: it goes before it has filled the budget for minutes."""
    limits = Limits(upload_grace_s=1.0, min_bytes_per_s=1024)
    with in_thread(encoder, limits) as url, connect(url) as line:
        line.settimeout(30)
        line.sendall(head(MIB) + b" " * 500_000)
        assert everything(line).startswith(b"HTTP/1.1 408")


def test_half_sent_bodies_do_not_fill_the_memory(encoder: QueryEncoder) -> None:
    """What comes after two megabytes at once is refused, although no single body is too large; then there is room again."""
    with in_thread(encoder, Limits(max_body_bytes=MIB, buffered_bytes=2 * MIB, upload_grace_s=30)) as url:
        lines = [connect(url) for _ in range(2)]
        for line in lines:
            line.sendall(head(MIB) + b" " * (MIB - 1))
        answer = eventually(lambda: post(f"{url}v1/embeddings", json={"input": "x"}), 503)
        assert answer.headers["retry-after"] == "1"
        for line in lines:
            line.close()
        eventually(lambda: post(f"{url}v1/embeddings", json={"input": "x"}), 200)


def test_a_client_that_breaks_off_costs_nothing(small: str) -> None:
    for _ in range(20):
        with connect(small) as line:
            line.sendall(head(MIB) + b" " * 1000)
    assert eventually(lambda: post(f"{small}v1/embeddings", json={"input": "x"}), 200)


# Overload.


def test_overload_answers_503_with_retry_after_and_the_others_get_their_own_vectors(
    encoder: QueryEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encode_ids = encoder.texts, encoder.encode_ids

    def slowly(ids: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return encode_ids(ids)

    monkeypatch.setattr(encoder, "encode_ids", slowly)
    limits = Limits(waiting_rows=160, requests_at_once=60)

    async def clients(url: str) -> list[httpx.Response]:
        pool = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=pool) as client:
            bodies = [{"input": [f"text {number}-{row}" for row in range(20)]} for number in range(100)]
            return await asyncio.gather(*(client.post("/v1/embeddings", json=body) for body in bodies))

    with in_thread(encoder, limits) as url:
        answers = asyncio.run(clients(url))
        assert get(f"{url}health").json()["status"] == "ok"
        assert post(f"{url}v1/embeddings", json={"input": "later"}).status_code == 200
    assert {answer.status_code for answer in answers} == {200, 503}
    for number, answer in enumerate(answers):
        if answer.status_code == 503:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["type"] == "overloaded_error"
        else:
            vectors = [item["embedding"] for item in answer.json()["data"]]
            np.testing.assert_allclose(vectors, encode([f"text {number}-{row}" for row in range(20)]), atol=1e-5)


def test_health_sees_a_model_that_hangs(encoder: QueryEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    encode_ids = encoder.encode_ids

    def hanging(ids: np.ndarray) -> np.ndarray:
        gate.wait(20)
        return encode_ids(ids)

    monkeypatch.setattr(encoder, "encode_ids", hanging)
    with in_thread(encoder, Limits(stall_s=0.2)) as url:
        asking = threading.Thread(target=post, args=(f"{url}v1/embeddings",), kwargs={"json": {"input": "x"}})
        asking.start()
        stuck = eventually(lambda: get(f"{url}health"), 503)
        gate.set()
        asking.join()
        assert stuck.json()["status"] == "stuck"
        assert get(f"{url}health").status_code == 200


def test_a_failure_of_ours_shows_nothing_of_the_inside(encoder: QueryEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_ids: np.ndarray) -> np.ndarray:
        raise RuntimeError("secret path /home/me")

    monkeypatch.setattr(encoder, "encode_ids", broken)
    with in_thread(encoder, Limits()) as url:
        answer = post(f"{url}v1/embeddings", json={"input": "x"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS


# Keys.


def test_with_a_key_only_the_key_opens(encoder: QueryEncoder) -> None:
    with in_thread(encoder, Limits(), key="correct-horse-battery") as url:
        assert get(url).status_code == 200, "the page itself holds no data"
        assert get(f"{url}health").status_code == 200
        without = post(f"{url}v1/embeddings", json={"input": "x"})
        assert (without.status_code, without.headers["www-authenticate"]) == (401, "Bearer")
        wrong = post(f"{url}v1/embeddings", json={"input": "x"}, headers={"Authorization": "Bearer wrong"})
        assert wrong.json()["error"]["code"] == "invalid_api_key"
        key = {"Authorization": "Bearer correct-horse-battery"}
        assert post(f"{url}v1/embeddings", json={"input": "x"}, headers=key).status_code == 200
        assert get(f"{url}metrics").status_code == 401
        assert get(f"{url}openapi.json").json()["security"] == [{"key": []}]


def test_it_does_not_start_where_others_could_reach_it_without_a_key(clip: Exported, tmp_path: Path) -> None:
    said = refused("--bundle", clip.folder, "--host", "0.0.0.0", cwd=tmp_path, expect=4).err
    assert "MCIP_QDRANT_SERVE_KEY" in said
    (tmp_path / "empty").write_text("\n")
    env = {"MCIP_QDRANT_SERVE_KEY_FILE": str(tmp_path / "empty")}
    assert "at least one printable" in refused("--bundle", clip.folder, cwd=tmp_path, env=env, expect=4).err


def test_with_a_key_in_a_file_it_listens_on_every_address(clip: Exported, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-a-file-0123456789\n")
    env = {"MCIP_QDRANT_SERVE_KEY_FILE": str(tmp_path / "key")}
    with serving("--bundle", clip.folder, "--host", "0.0.0.0", cwd=tmp_path, env=env) as served:
        assert "embeddings only" in "".join(served.said)
        assert served.post("/v1/embeddings", {"input": "x"}).status_code == 401
        key = {"Authorization": "Bearer from-a-file-0123456789", "Host": "any.name.example"}
        assert served.post("/v1/embeddings", {"input": "x"}, headers=key).status_code == 200
        only = served.post("/v1/search", {"text": "x"}, headers=key)
        assert only.status_code == 404
        assert "embeddings only" in only.json()["error"]["message"]
        assert "from-a-file" not in "".join(served.said)

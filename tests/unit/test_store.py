"""Connecting, retrying, and telling Qdrant's many errors apart. Transport errors come from a real HTTP server."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient
from unit_support import manifest

from mcip_qdrant.collection import ensure_collection
from mcip_qdrant.errors import ConfigurationError, SourceError, StoreError, StoreUnavailableError
from mcip_qdrant.keys import point_id
from mcip_qdrant.sink import QdrantSink
from mcip_qdrant.store import Store, open_store, qdrant_errors

OK = (200, {}, json.dumps({"result": {"collections": []}, "status": "ok", "time": 0.0}).encode())
CLOSE = (0, {}, b"")
HANG = (-1, {}, b"")
Answer = tuple[int, dict[str, str], bytes]


def failing(status: int, message: str = "no", **headers: str) -> Answer:
    body = json.dumps({"status": {"error": message}, "time": 0.0}).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


class Server:
    """Answers requests with the given answers in turn, the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [OK]
        self.requests: list[tuple[str, str | None]] = []
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("api-key")))
                status, headers, body = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if status == HANG[0]:
                    outer.release.wait(10)
                    return
                if status == CLOSE[0]:
                    return
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(body)),
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the retries wanted to wait; they do not."""
    waited: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waited.append)
    return waited


def collections(server: Server, *, attempts: int = 1, timeout_s: int = 5) -> Any:
    store = open_store(server.url, timeout_s=timeout_s)
    try:
        return store.call(lambda client: client.get_collections(), attempts=attempts)
    finally:
        store.close()


TRANSIENT = {
    "429": failing(429),
    "429 with seconds": failing(429, Retry_After="3"),
    "429 with a date": failing(429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"),
    "500": failing(500),
    "502 of a proxy": (502, {"Content-Type": "text/html"}, b"<html>bad gateway</html>"),
    "503": failing(503),
    "connection closed": CLOSE,
    "cut short": (200, {"Content-Length": "1000"}, b'{"result"'),
}


@pytest.mark.parametrize("answer", TRANSIENT.values(), ids=TRANSIENT)
def test_transient_errors_are_retried(server: Server, sleeps: list[float], answer: Answer) -> None:
    server.answers = [answer, answer, answer, OK]
    assert collections(server, attempts=5).collections == []
    assert len(server.requests) == 4
    assert len(sleeps) == 3


@pytest.mark.parametrize("answer", TRANSIENT.values(), ids=TRANSIENT)
def test_transient_errors_are_named_after_the_last_attempt(server: Server, sleeps: list[float], answer: Answer) -> None:
    server.answers = [answer]
    with pytest.raises(StoreUnavailableError, match=server.url):
        collections(server, attempts=3)
    assert len(server.requests) == 3
    assert len(sleeps) == 2


def test_without_attempts_there_is_one(server: Server, sleeps: list[float]) -> None:
    server.answers = [failing(503)]
    with pytest.raises(StoreUnavailableError, match="HTTP 503"):
        collections(server)
    assert len(server.requests) == 1
    assert sleeps == []


def test_waits_grow_and_stay_bounded(server: Server, sleeps: list[float]) -> None:
    server.answers = [failing(503)]
    with pytest.raises(StoreUnavailableError):
        collections(server, attempts=40)
    assert len(sleeps) == 39
    assert sleeps[0] <= 0.5
    assert max(sleeps) > 5
    assert all(0 <= wait <= 20 for wait in sleeps)
    assert len(set(sleeps)) > 20  # jitter


PERMANENT = {
    "400": (failing(400, "wrong vector size"), "HTTP 400.*wrong vector size"),
    "404": (failing(404, "no such collection"), "HTTP 404.*no such collection"),
    "409": (failing(409), "HTTP 409"),
    "another web server": ((200, {"Content-Type": "text/html"}, b"<html>hello</html>"), "JSONDecodeError"),
    "other JSON": ((200, {}, b'{"hello": 1}'), "AssertionError"),
    "other types": ((200, {}, b'{"result": {"collections": 5}}'), "is not Qdrant"),
    "bytes": ((400, {}, b"\xff\xfe\0"), "HTTP 400"),
}


@pytest.mark.parametrize(("answer", "words"), PERMANENT.values(), ids=PERMANENT)
def test_permanent_errors_are_not_retried(server: Server, sleeps: list[float], answer: Answer, words: str) -> None:
    server.answers = [answer, OK]
    with pytest.raises(StoreError, match=words) as caught:
        collections(server, attempts=5)
    assert not isinstance(caught.value, StoreUnavailableError)
    assert server.url in str(caught.value)
    assert len(server.requests) == 1
    assert sleeps == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_a_configuration_error(server: Server, sleeps: list[float], status: int) -> None:
    server.answers = [failing(status)]
    with pytest.raises(ConfigurationError, match=rf"HTTP {status}.*MCIP_QDRANT_API_KEY"):
        collections(server, attempts=5)
    assert len(server.requests) == 1
    assert sleeps == []


def test_the_key_is_sent_and_never_told(server: Server) -> None:
    server.answers = [failing(401)]
    with pytest.warns(UserWarning, match="insecure"):
        store = open_store(server.url, api_key="very-secret")
    with pytest.raises(ConfigurationError) as caught:
        store.call(lambda client: client.get_collections())
    store.close()
    assert server.requests == [("/collections", "very-secret")]
    assert "very-secret" not in f"{caught.value!r} {caught.value} {store!r}"


def test_opening_asks_nothing_of_the_server(server: Server) -> None:
    open_store(server.url).close()
    assert server.requests == []


def test_a_slow_server_is_unavailable(server: Server) -> None:
    server.answers = [HANG]
    start = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="timed out"):
        collections(server, timeout_s=1)
    assert time.monotonic() - start < 8


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nobody_there(sleeps: list[float]) -> None:
    store = open_store(f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        store.call(lambda client: client.get_collections(), attempts=2)
    assert len(sleeps) == 1
    store.close()


def test_nobody_there_over_grpc() -> None:
    port = unused_port()
    client = QdrantClient(host="127.0.0.1", grpc_port=port, prefer_grpc=True, check_compatibility=False, timeout=3)
    store = Store.of(client)
    with pytest.raises(StoreUnavailableError, match=r"UNAVAILABLE|DEADLINE"):
        store.call(lambda client: client.get_collections())
    store.close()


def test_errors_that_are_not_qdrants_pass_through(sleeps: list[float]) -> None:
    store = Store.of(QdrantClient(":memory:"))
    for error in (SourceError("ours"), KeyboardInterrupt(), ZeroDivisionError()):

        def action(_client: QdrantClient, error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            store.call(action, attempts=3)
        assert caught.value is error
    assert sleeps == []
    store.close()


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), TypeError("x"), RuntimeError("x"), OSError("x"), AssertionError("x")]
)
def test_bare_errors_of_local_mode_are_store_errors(error: Exception) -> None:
    with pytest.raises(StoreError, match=r"Qdrant at here.*x") as caught, qdrant_errors("here"):
        raise error
    assert caught.value.__cause__ is error
    assert not isinstance(caught.value, StoreUnavailableError)


@pytest.mark.parametrize("location", ["ftp://host", "redis://host", "qdrant://x", "://"])
def test_other_schemes_are_refused(location: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"expected a server \(http://HOST:6333 or https://HOST:6333\) or a folder"
    ):
        open_store(location)
    assert not Path(location.split(":", maxsplit=1)[0] + ":").exists()


@pytest.mark.parametrize("location", ["http://[::1", "http://host:port", "HTTP://[x"])
def test_urls_that_are_none(location: str) -> None:
    with pytest.raises(StoreError, match="Qdrant at"):
        open_store(location)


def test_store_of_knows_where_it_is(tmp_path: Path) -> None:
    folder = str(tmp_path / "q")
    made: list[tuple[Callable[[], QdrantClient], str, bool]] = [
        (lambda: QdrantClient(":memory:"), ":memory:", True),
        (lambda: QdrantClient(location=":memory:"), ":memory:", True),
        (lambda: QdrantClient(path=folder), folder, True),
        (lambda: QdrantClient(url="http://h:1", check_compatibility=False), "http://h:1", False),
        (lambda: QdrantClient("http://h:1", check_compatibility=False), "http://h:1", False),
        (lambda: QdrantClient(host="h", port=2, check_compatibility=False), "h:2", False),
    ]
    for make, location, embedded in made:
        store = Store.of(make())
        assert (store.location, store.embedded) == (location, embedded)
        store.close()


def test_a_new_folder_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = open_store(str(tmp_path / "deep" / "q"))
    finally:
        os.umask(before)
    assert store.embedded
    assert stat.S_IMODE((tmp_path / "deep" / "q").stat().st_mode) == 0o700
    store.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # qdrant-client's own lock file
def test_a_folder_in_use_is_named(tmp_path: Path) -> None:
    folder = str(tmp_path / "q")
    store = open_store(folder)
    with pytest.raises(StoreError, match=r"in use by another process.*--qdrant http://HOST:6333"):
        open_store(folder)
    code = (
        "import sys; from mcip_qdrant.store import open_store; from mcip_qdrant.errors import StoreError\n"
        "try: open_store(sys.argv[1])\nexcept StoreError as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=60, check=True)
    assert "in use by another process" in done.stdout
    store.close()
    open_store(folder).close()


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        folder = tmp_path / "q"
        folder.mkdir()
        os.chown(folder, 12345, 12345)
    else:
        folder = Path("/etc")
    before = sorted(folder.iterdir())
    with pytest.raises(ConfigurationError, match=r"belongs to another user.*pickles"):
        open_store(str(folder))
    assert sorted(folder.iterdir()) == before


def test_a_folder_that_holds_other_things_is_left_alone(tmp_path: Path) -> None:
    """A mistyped --qdrant, which may name the archive."""
    (tmp_path / "photo.jpg").touch()
    (tmp_path / ".hidden").touch()
    for create in (True, False):
        with pytest.raises(ConfigurationError, match="this folder is no embedded Qdrant"):
            open_store(str(tmp_path), create=create)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "photo.jpg"]


def test_new_disks_are_taken(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".Trash").mkdir()
    open_store(str(tmp_path)).close()
    open_store(str(tmp_path), create=False).close()


def test_who_only_reads_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        open_store(str(tmp_path / "q"), create=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no embedded Qdrant"):
        open_store(str(tmp_path / "empty"), create=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("location", ["", "localhost:6333", "qdrant.example.org:6333/x", "10.0.0.1:6333"])
def test_what_was_meant_as_a_server(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"expected a server \(http://HOST:6333"):
        open_store(location)
    assert list(tmp_path.iterdir()) == []


def test_a_password_in_the_url_is_never_told(sleeps: list[float], caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(f"http://user:very-secret@127.0.0.1:{unused_port()}/path")
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:\d+/path") as caught:
        store.call(lambda client: client.get_collections(), attempts=3)
    assert len(sleeps) == 2
    assert "trying again in" in caplog.text
    for said in (str(caught.value), store.location, repr(store), caplog.text):
        assert "very-secret" not in said
    with pytest.raises(ConfigurationError) as refused:
        open_store("qdrant://user:very-secret@host")
    assert "very-secret" not in str(refused.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "q"):
        with pytest.raises(StoreError, match=f"--qdrant {place}: cannot be used"):
            open_store(str(place))
    assert (tmp_path / "file").read_text() == "x"


def test_a_first_start_that_was_killed_is_mended(tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "meta.json").touch()
    store = open_store(str(tmp_path / "q"))
    assert ensure_collection(store, "images", manifest(), {})
    store.close()


def test_damaged_folders_are_store_errors_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "q"
    store = open_store(str(folder))
    ensure_collection(store, "images", manifest(), {})
    store.close()
    good = (folder / "meta.json").read_bytes()
    for damaged in (b"", b"{", b"[]", b"\xff"):
        (folder / "meta.json").write_bytes(damaged)
        with pytest.raises(StoreError, match=str(folder)):
            open_store(str(folder))
        assert (folder / "meta.json").read_bytes() == damaged
    # Nothing of the failed attempts keeps the folder locked.
    (folder / "meta.json").write_bytes(good)
    open_store(str(folder)).close()
    (folder / "collection" / "images" / "storage.sqlite").write_bytes(b"garbage " * 1000)
    with pytest.raises(StoreError, match="cannot be written or read"):
        open_store(str(folder))


def test_embedded_calls_never_overlap(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "q"))
    ensure_collection(store, "images", manifest(), {})
    sink, inside, most = QdrantSink(store, "images"), [0], [0]

    def slowly(_client: QdrantClient) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        inside[0] -= 1

    def work(worker: int) -> None:
        for number in range(10):
            ids = [point_id(f"s/{worker}/{number}/{index}") for index in range(3)]
            sink.upsert(ids, np.ones((3, 3), np.float32), [{"source": "s"}] * 3)
            assert len(sink.known(ids)) == 3
            store.call(slowly)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert sink.count() == 4 * 10 * 3
    # A call inside a call does not lock itself out.
    assert store.call(lambda _client: sink.count()) == 120
    store.close()


def test_calls_to_a_server_run_side_by_side(server: Server) -> None:
    store = open_store(server.url)
    meeting = threading.Barrier(2, timeout=5)
    threads = [threading.Thread(target=store.call, args=(lambda _client: meeting.wait(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not meeting.broken
    store.close()

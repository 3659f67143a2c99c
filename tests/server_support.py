"""A real `mcip-qdrant serve` for the tests: a process of its own on a free port, or a thread with limits that a test can reach."""

from __future__ import annotations

import base64
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from cli_support import Done, finish, start

from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.server.app import build_app
from mcip_qdrant.server.program import listen, url_of
from mcip_qdrant.server.protocol import protocol_with
from mcip_qdrant.server.settings import Limits, ServerSettings
from mcip_qdrant.store import Store

XSS_NAME = "<img src=x onerror=document.title='owned'>.jpg"
XSS_VALUE = "<script>document.title='owned'</script>"
"""What attackers would call a file, and put into a column."""

_STARTING_S = 120.0


@dataclass
class Served:
    """A running server, and a client of it."""

    url: str
    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=90)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """POST as JSON."""
        return self.http.post(path, json=body, **options)

    def search(self, **body: Any) -> dict[str, Any]:
        """`/v1/search`, which must succeed."""
        answer = self.post("/v1/search", body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@dataclass(frozen=True)
class Shown:
    """A folder and the embedded collection that one server of this session serves."""

    folder: Path
    home: Path
    bundle: Path
    served: Served

    def bytes_of(self, name: str) -> bytes:
        """The file of an image."""
        return (self.folder / name).read_bytes()


@contextmanager
def serving(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> Iterator[Served]:
    """A `mcip-qdrant serve …` process; it must end in order when it is told to."""
    process = start("serve", "--port", 0, *arguments, cwd=cwd, env={"OMP_NUM_THREADS": "2", **(env or {})})
    assert process.stderr is not None
    said: list[str] = []
    ready = threading.Event()
    url: list[str] = []

    def listen_to() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if match := re.match(r"serving (http://\S+/)", line):
                url.append(match[1])
                ready.set()
        ready.set()

    reader = threading.Thread(target=listen_to, daemon=True)
    reader.start()
    try:
        assert ready.wait(_STARTING_S), "".join(said)
        assert url, "".join(said)
        served = Served(url[0], process, said)
        with served.http:
            yield served
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        reader.join(10)
        process.stderr.close()
        if process.stdout is not None:
            process.stdout.close()
    assert code == 0, "".join(said)


def refused(*arguments: object, cwd: Path, env: dict[str, str] | None = None, expect: int) -> Done:
    """A `mcip-qdrant serve …` that does not start."""
    return finish(start("serve", "--port", 0, *arguments, cwd=cwd, env=env), expect=expect)


@contextmanager
def in_thread(encoder: QueryEncoder, limits: Limits, *, store: Store | None = None, **settings: Any) -> Iterator[str]:
    """A server in this process, with limits of the test's choice; gives its URL."""
    chosen = ServerSettings(port=0, limits=limits, **settings)
    app = build_app(encoder, chosen, precision="fp32", provider="CPUExecutionProvider", store=store)
    listening = listen(chosen)
    config = uvicorn.Config(
        app, http=protocol_with(limits), ws="none", lifespan="on", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    deadline = time.monotonic() + _STARTING_S
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield url_of(listening)
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def data_url(data: bytes, kind: str = "image/jpeg") -> str:
    """Bytes as browsers and API clients send pictures."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"

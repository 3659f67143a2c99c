"""A distributed installation for tests: Redis, Qdrant behind a proxy, workers and dispatchers, each a real process.

With QDRANT_URL in the environment the points go to that server; tests that have to stop Qdrant are skipped then.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import fault_proxy
import pytest
import redis
import services
from cli_support import Done
from qdrant_client import QdrantClient, models
from service_fixtures import start_redis

_T = TypeVar("_T")
_POLL_S = 0.05
# One model thread and little else: several of these processes share a small machine.
_CALM = {"OMP_NUM_THREADS": "1"}


def open_qdrant(url: str, api_key: str | None = None) -> QdrantClient:
    """A client that does not look at versions: it would warn from a thread of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return QdrantClient(url=url, api_key=api_key, timeout=30, check_compatibility=False)


def wait_for(condition: Callable[[], _T], within: float, what: object) -> _T:
    """Poll until it is true (or not None, …); returns what it is then."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(_POLL_S)
    return found


class CountingProxy(fault_proxy.FaultProxy):
    """A fault proxy that counts how often each point was looked up, and how often it was written.

    `read_only`: answer 503 to writes, as a Qdrant whose disk is full does, whatever else was ordered.
    """

    def __init__(self, target_url: str, *, delay: float = 1.0) -> None:
        super().__init__(target_url, delay=delay)
        self.lookups: Counter[str] = Counter()
        self.upserts: Counter[str] = Counter()
        self.read_only = False
        self._server.RequestHandlerClass = _CountingHandler

    def note(self, method: str, path: str, body: bytes) -> None:
        """Called for each request that was carried out."""
        if path.partition("?")[0].endswith("/points") and method in {"PUT", "POST"}:
            asked = json.loads(body)
            with self._lock:
                if method == "PUT":
                    self.upserts.update(asked["batch"]["ids"])
                else:
                    self.lookups.update(asked["ids"])


class _CountingHandler(fault_proxy._Handler):
    def do_PUT(self) -> None:  # noqa: N802 - http.server's name
        if cast("CountingProxy", self.proxy).read_only:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._fail(503, self.proxy.count("503"))
        else:
            self._relay()

    def _forward(self, body: bytes) -> Any:
        answer = super()._forward(body)
        if answer[0] == 200:
            cast("CountingProxy", self.proxy).note(self.command, self.path, body)
        return answer


class Program:
    """A running `mcip-qdrant …` with its output in files, so that no full pipe ever stops it."""

    def __init__(self, command: Sequence[object], home: Path, name: str, env: Mapping[str, str], cwd: Path) -> None:
        self.command = [str(part) for part in command]
        self.out_file, self.err_file = home / f"{name}.out", home / f"{name}.err"
        # It must not outlive a test process that is killed.
        shim = [sys.executable, "-IS", "-c", services._DIE_WITH_PARENT, str(os.getpid())]
        with self.out_file.open("wb") as out, self.err_file.open("wb") as err:
            self.process = subprocess.Popen(
                [*shim, *self.command],
                cwd=cwd,
                env={**os.environ, **_CALM, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def out(self) -> str:
        return self.out_file.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self.err_file.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait(20)

    def end(self, expect: int | None = 0, within: float = 120) -> Done:
        """Wait for its end; its exit code is asserted, and that no traceback reached the user."""
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within} s: {self}") from None
        assert expect is None or code == expect, f"exit {code} instead of {expect}: {self}"
        assert not any(line.startswith("Traceback") for line in self.err.splitlines()), self
        return Done(code, self.out, self.err)

    # Of workers.

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """Its log, one object a line; those of one event if that is given."""
        whole = self.err.rpartition("\n")[0].splitlines()
        found = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in found if event is None or line["event"] == event]

    @property
    def ready(self) -> bool:
        """It has checked everything and takes work."""
        return any(line["event"].startswith("worker ") for line in self.log())

    def __str__(self) -> str:
        err = "\n".join(line for line in self.err.replace("\r", "\n").splitlines() if not line.startswith("ingest: "))
        return f"{' '.join(self.command[1:])}\n--- stdout\n{self.out[-2000:]}\n--- stderr\n{err[-4000:]}"


class Cluster:
    """Everything that a distributed run needs, on 127.0.0.1 and in one folder."""

    def __init__(
        self,
        home: Path,
        bundle: Path,
        roots: Mapping[str, Path],
        *,
        timeout_s: float = 8,
        api_key: str | None = None,
        redis_options: Mapping[str, Any] | None = None,
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.bundle, self.roots = home, bundle, dict(roots)
        self.timeout_s, self.api_key, self._redis_options = timeout_s, api_key, dict(redis_options or {})
        self.collection = f"images-{uuid.uuid4().hex[:8]}"
        self.workers: list[Program] = []
        self._programs: list[Program] = []
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.redis = stack.enter_context(start_redis(self.home / "redis", **self._redis_options))
            self.qdrant_url = "" if self.api_key else os.environ.get("QDRANT_URL", "")
            self.qdrant: services.QdrantService | None = None
            if not self.qdrant_url:
                server = services.qdrant_server(self.home / "qdrant", api_key=self.api_key)
                self.qdrant = stack.enter_context(server)
                self.qdrant_url = server.url
            self.client = open_qdrant(self.qdrant_url, self.api_key)
            stack.callback(self.client.close)
            if self.qdrant is None:
                stack.callback(lambda: self.client.delete_collection(self.collection))
            self.proxy = stack.enter_context(CountingProxy(self.qdrant_url))
            authority = {"ssl_ca_certs": str(self.redis.tls.authority)} if self.redis.tls else {}
            self.db: Any = redis.Redis.from_url(self.redis.url, decode_responses=True, **authority)
            stack.callback(self.db.close)
            stack.callback(self._end_programs)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._closing.close()

    def _end_programs(self) -> None:
        for program in self._programs:
            if program.running:
                program.kill()

    @property
    def server(self) -> services.QdrantService:
        """Qdrant, for tests that stop it."""
        if self.qdrant is None:
            pytest.skip("this test stops Qdrant, so it leaves the server at QDRANT_URL alone")
        return self.qdrant

    @property
    def env(self) -> dict[str, str]:
        """What every program is told."""
        return {
            "MCIP_QDRANT_BROKER": f"{'rediss' if self.redis.tls else 'redis'}://127.0.0.1:{self.redis.port}/0",
            "MCIP_QDRANT_URL": self.proxy.url,
            "MCIP_QDRANT_COLLECTION": self.collection,
            "MCIP_QDRANT_BUNDLE": str(self.bundle),
            "MCIP_QDRANT_DEVICE": "cpu",
            "MCIP_QDRANT_VISIBILITY_TIMEOUT_S": str(self.timeout_s),
            "MCIP_QDRANT_SOURCE_ROOTS": ":".join(f"{name}={root}" for name, root in self.roots.items()),
            "NO_PROXY": "*",
        }

    def program(
        self,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        command: Sequence[object] = ("-m", "mcip_qdrant"),
    ) -> Program:
        """Start `mcip-qdrant …`, or another Python command."""
        name = f"{len(self._programs):02}-{arguments[0] if arguments else 'program'}"
        started = Program(
            [sys.executable, *command, *arguments], self.home, name, {**self.env, **(env or {})}, self.home
        )
        self._programs.append(started)
        return started

    def run(self, *arguments: object, expect: int | None = 0, env: Mapping[str, str] | None = None) -> Done:
        """Run `mcip-qdrant …` to its end."""
        return self.program(*arguments, env=env).end(expect)

    def start_workers(self, count: int, *flags: object, ready: bool = True, **options: Any) -> list[Program]:
        """Start workers, side by side."""
        started = [self.program("worker", *flags, **options) for _ in range(count)]
        self.workers += started
        for worker in started if ready else ():
            wait_for(lambda worker=worker: worker.ready or not worker.running, 60, worker)
            assert worker.running, worker
        return started

    def ingest(self, folder: Path | str, *flags: object, hurried: bool = False) -> Program:
        """Start a dispatcher; one that is hurried goes past the proxy and its delays."""
        env = {"MCIP_QDRANT_URL": self.qdrant_url} if hurried else {}
        return self.program("ingest", folder, "--json", *flags, env=env)

    def forget_points(self) -> None:
        """Go on with a collection that does not exist yet, and without faults."""
        self.collection = f"images-{uuid.uuid4().hex[:8]}"
        self.proxy.mode = "pass"
        self.proxy.fail_share(0, "pass")
        self.proxy.lookups.clear()
        self.proxy.upserts.clear()

    # What Redis holds, read without the code under test.

    def runs(self) -> list[str]:
        """Run ids, newest first."""
        return list(self.db.zrevrange("mcip_qdrant:runs", 0, -1))

    def newest_run(self, known: Iterable[str] = ()) -> str:
        """The run that has just been opened."""
        return wait_for(lambda: next((run for run in self.runs() if run not in set(known)), None), 30, "a new run")

    def ledger(self, run: str, part: str) -> dict[str, str]:
        """One hash of a run's ledger."""
        return dict(self.db.hgetall(f"mcip_qdrant:run:{run}:{part}"))

    def settled(self, run: str) -> int:
        """Images whose fate is known."""
        totals = self.ledger(run, "totals")
        return sum(int(totals.get(name, 0)) for name in ("embedded", "unchanged", "failed"))

    def in_hand(self, worker: Program) -> int:
        """Chunks that a worker is working on."""
        return sum(
            holder.split(":")[1] == str(worker.pid)
            for run in self.runs()
            for holder in self.ledger(run, "working").values()
        )

    def waiting(self) -> int:
        """Messages in queues and in workers' hands."""
        queues = self.db.keys("mcip_qdrant.*")
        return sum(self.db.llen(name) for name in queues) + self.db.hlen("unacked")

    def wait_until_quiet(self, within: float = 60) -> None:
        """Until no message is left. For a moment none is seen while one moves, so it has to last."""
        quiet_since = time.monotonic()
        deadline = quiet_since + within
        while time.monotonic() - quiet_since < 1:
            if self.waiting():
                quiet_since = time.monotonic()
            assert time.monotonic() < deadline, f"{self.waiting()} messages after {within} s; {self}"
            time.sleep(_POLL_S)

    # What users see.

    def status(self, run: str) -> dict[str, Any]:
        """`mcip-qdrant status RUN --json`."""
        return dict(self.run("status", run, "--json").json)

    def points(self) -> dict[str, models.Record]:
        """Every point by id."""
        found: dict[str, models.Record] = {}
        offset: Any = None
        while True:
            page, offset = self.client.scroll(
                self.collection, limit=2000, offset=offset, with_vectors=True, with_payload=True
            )
            for record in page:
                assert str(record.id) not in found
                found[str(record.id)] = record
            if offset is None:
                return found

    def __str__(self) -> str:
        runs = {run: (self.ledger(run, "info").get("state"), self.ledger(run, "totals")) for run in self.runs()}
        return "\n".join([str(runs), *(str(worker) for worker in self.workers)])

"""Real services for the tests: a Redis server and a Qdrant server, each a process that a test may stop, kill and start again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

HOST = "127.0.0.1"
_STARTING_S = 30.0
_STOPPING_S = 20.0
_ATTEMPTS = 5
_BETWEEN_ATTEMPTS_S = 0.2
_POLL_S = 0.02
_AOF = "appendonlydir"

# Runs before the service, in its process: when the test process dies, the kernel ends this one (1 is PR_SET_PDEATHSIG).
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ServiceMissingError(RuntimeError):
    """A program that a test needs is not installed."""


class ServiceFailedError(RuntimeError):
    """A service did not start, or did not end."""


class _EndedAtOnceError(ServiceFailedError):
    """Most likely somebody else took its port in between."""


class Service:
    """A server process on 127.0.0.1. Start it from the thread that outlives it: Linux ends it with the thread, not the process."""

    def __init__(self, folder: Path, port: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = port or 0
        self.log = folder / "service.log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """What to run."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What to add to the environment."""
        return {}

    def ready(self) -> bool:
        """Whether it answers."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The process, as long as it runs."""
        if self._process is None:
            raise ServiceFailedError(f"{type(self).__name__} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start, on the same port and data as before; returns once it answers."""
        if self.running:
            raise ServiceFailedError(f"{type(self).__name__} is already running")
        given = self.port
        for _ in range(_ATTEMPTS - 1):
            self.port = given or free_port()
            with contextlib.suppress(_EndedAtOnceError):
                self._start_once()
                return self
            time.sleep(_BETWEEN_ATTEMPTS_S)
        self.port = given or free_port()
        self._start_once()
        return self

    def _start_once(self) -> None:
        shim = [sys.executable, "-IS", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*shim, *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment()},
                start_new_session=True,  # Ctrl-C in the terminal is for pytest alone
            )
        deadline = time.monotonic() + _STARTING_S
        while not self.ready():
            if not self.running:
                raise _EndedAtOnceError(self._failure())
            if time.monotonic() > deadline:
                self.kill()
                raise ServiceFailedError(self._failure())
            time.sleep(_POLL_S)

    def _failure(self) -> str:
        tail = self.log.read_text(errors="replace")[-2000:]
        return f"{type(self).__name__} did not start on port {self.port}:\n{tail}"

    def stop(self) -> None:
        """SIGTERM, and wait: it saves what it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait: it gets no chance to save anything."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(_STOPPING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise ServiceFailedError(f"{type(self).__name__} did not end within {_STOPPING_S:.0f} s") from None
        finally:
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class RedisTls:
    """Files for Redis over TLS; the certificate must be good for 127.0.0.1. Clients need no certificate."""

    certificate: Path
    key: Path
    authority: Path


class RedisService(Service):
    """A `redis-server`."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        aof: bool = True,
        fsync: str = "everysec",
        password: str | None = None,
        tls: RedisTls | None = None,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(folder, port)
        program = shutil.which("redis-server")
        if program is None:
            raise ServiceMissingError("redis-server is not installed: apt-get install redis-server")
        self.program = program
        self.aof = aof
        self.fsync = fsync
        self.password = password
        self.tls = tls
        self.options = tuple(options)

    @property
    def url(self) -> str:
        """For redis-py, kombu and Celery."""
        scheme = "rediss" if self.tls else "redis"
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"{scheme}://{login}{HOST}:{self.port}/0"

    def command(self) -> Sequence[str]:
        """`--dir` holds the data; snapshots are off, so that only the append-only file survives a kill."""
        listen = ["--port", str(self.port)]
        if self.tls:
            listen = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            listen += ["--tls-cert-file", str(self.tls.certificate), "--tls-key-file", str(self.tls.key)]
            listen += ["--tls-ca-cert-file", str(self.tls.authority)]
        login = ["--requirepass", self.password] if self.password else []
        keep = ["--appendonly", "yes" if self.aof else "no", "--appendfsync", self.fsync, "--save", ""]
        policy = ["--maxmemory-policy", "noeviction"]
        where = ["--bind", HOST, "--dir", str(self.folder), "--daemonize", "no"]
        return [self.program, *listen, *login, *where, *keep, *policy, *self.options]

    def copy(self, to: Path) -> None:
        """What is on its disk now, for `go_back`."""
        shutil.copytree(self.folder / _AOF, to)

    def go_back(self, to: Path) -> None:
        """What it has written since `copy` is lost, as with a power cut or a failover: killed, set back, and started again."""
        self.kill()
        shutil.rmtree(self.folder / _AOF)
        shutil.copytree(to, self.folder / _AOF)
        self.start()

    def ready(self) -> bool:
        """PING works, and it is this process that answers: another one may have taken the port."""
        with contextlib.suppress(OSError):
            return b"+PONG" in self._ask("PING") and f"process_id:{self.pid}\r".encode() in self._ask("INFO", "server")
        return False

    def _ask(self, *words: str) -> bytes:
        login = _redis_command("AUTH", self.password) if self.password else b""
        with socket.create_connection((HOST, self.port), timeout=5) as plain, self._wrapped(plain) as line:
            line.sendall(login + _redis_command(*words) + _redis_command("QUIT"))
            return b"".join(iter(lambda: line.recv(65536), b""))

    def _wrapped(self, plain: socket.socket) -> socket.socket:
        if self.tls is None:
            return plain
        return ssl.create_default_context(cafile=str(self.tls.authority)).wrap_socket(plain, server_hostname=HOST)


def _redis_command(*words: str) -> bytes:
    parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
    return f"*{len(words)}\r\n{''.join(parts)}".encode()


class QdrantService(Service):
    """The Qdrant server of the tests (`qdrant_server/`)."""

    def __init__(self, folder: Path, *, port: int | None = None, api_key: str | None = None) -> None:
        super().__init__(folder, port)
        self.api_key = api_key

    @property
    def url(self) -> str:
        """For qdrant-client."""
        return f"http://{HOST}:{self.port}"

    def command(self) -> Sequence[str]:
        """Data in a folder of its own, beside the log."""
        login = ["--api-key", self.api_key] if self.api_key else []
        data = str(self.folder / "data")
        return [sys.executable, "-m", "qdrant_server", "--data", data, "--port", str(self.port), *login]

    def environment(self) -> dict[str, str]:
        """Where the package is."""
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
        return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def ready(self) -> bool:
        """It printed its line; each start prints one."""
        lines = self.log.read_text(errors="replace").splitlines()
        return any(f"pid {self.pid} listening" in line for line in lines)


def redis_server(
    folder: Path,
    *,
    port: int | None = None,
    aof: bool = True,
    fsync: str = "everysec",
    password: str | None = None,
    tls: RedisTls | None = None,
    options: Sequence[str] = (),
) -> RedisService:
    """A running Redis, killed at the end of the `with` block.

    Args:
        folder: data and log; a second server on the same folder finds what the first left.
        port: a free one by default.
        aof: keep an append-only file; without it, nothing survives.
        fsync: Redis' `appendfsync`. A killed process loses nothing with `everysec` that it had written, a killed machine might.
        password: of the default user.
        tls: listen for TLS only.
        options: more flags of redis-server.

    Raises:
        ServiceMissingError: redis-server is not installed.
        ServiceFailedError: it does not start.
    """
    return RedisService(folder, port=port, aof=aof, fsync=fsync, password=password, tls=tls, options=options).start()


def qdrant_server(folder: Path, *, port: int | None = None, api_key: str | None = None) -> QdrantService:
    """A running Qdrant server, killed at the end of the `with` block; a second one on the same folder finds the data."""
    return QdrantService(folder, port=port, api_key=api_key).start()

"""Decode in a child process that may die: for chunks that were in a worker's hands when it died.

The child does one image at a time, so when it dies the image in its hands is known. That image gets one more try in a fresh child:
what a neighbour may have left behind (memory, say) is not its fault. If it kills that child as well, it is a dead letter.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Self

from mcip_qdrant.errors import Reason
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.prepare import Clock, Prepared, Recipe, prepare
from mcip_qdrant.report import DeadLetter, Stage

DEFAULT_MEMORY_MB = 4096
DEFAULT_SECONDS = 60


class IsolatedDecoder:
    """Runs `prepare` in a child process. Same signature, same results; a crash becomes a dead letter."""

    def __init__(self, memory_mb: int = DEFAULT_MEMORY_MB, seconds: int = DEFAULT_SECONDS) -> None:
        """Nothing is started yet.

        Args:
            memory_mb: what the child may allocate on top of what it starts with.
            seconds: what one image may take.
        """
        self._memory_mb, self._seconds = memory_mb, seconds
        self._lock = threading.Lock()
        self._process: SpawnProcess | None = None
        self._pipe: Connection[Any, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, ref: ImageRef, recipe: Recipe, known_sha256: str | None, timed: Clock) -> Prepared:
        """As `prepare`."""
        with self._lock, timed("decode"):
            for _ in range(2):
                pipe = self._child(recipe)
                try:
                    pipe.send((ref, known_sha256))
                    prepared: Prepared = pipe.recv()
                except (EOFError, OSError):
                    ending = self._end()
                else:
                    return prepared
            return DeadLetter(ref.key, Reason.CRASHED_DECODER, f"decoding it killed the process, twice: {ending}")

    def _child(self, recipe: Recipe) -> Connection[Any, Any]:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(theirs, recipe, self._memory_mb, self._seconds), name="decode", daemon=True
            )
            self._process.start()
            theirs.close()
            with contextlib.suppress(EOFError, OSError):  # dead before it began: sending to it will say so
                self._pipe.recv()
        return self._pipe

    def _end(self) -> str:
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if pipe is not None:
            pipe.close()
        if process is None:
            return ""
        process.join(5)
        if process.exitcode is None:
            process.kill()
            process.join()
        return self._described(process.exitcode or 0)

    def _described(self, code: int) -> str:
        if code == -signal.SIGALRM:
            return f"it took more than {self._seconds} s"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _serve(pipe: Connection[Any, Any], recipe: Recipe, memory_mb: int, seconds: int) -> None:
    """The child: one image after the other, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _limit_memory(memory_mb)
    pipe.send("ready")
    while True:
        try:
            ref, known_sha256 = pipe.recv()
        except EOFError:
            return
        # The default action of SIGALRM ends the process: also one that hangs inside a C library.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        prepared = prepare(ref, recipe, known_sha256, _untimed)
        signal.alarm(0)
        pipe.send(prepared)


def _limit_memory(memory_mb: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        now = int(statm.read().split()[0]) * resource.getpagesize()
    ceiling = now + memory_mb * 1024 * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard not in {resource.RLIM_INFINITY, -1}:
        ceiling = min(ceiling, hard)
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))


@contextlib.contextmanager
def _untimed(_stage: Stage) -> Iterator[None]:
    yield

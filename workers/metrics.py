"""What a worker tells its operators: Prometheus metrics and a health page on one small HTTP server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from socketserver import ThreadingMixIn
from time import monotonic
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, make_wsgi_app

from mcip_qdrant.errors import ConfigurationError, McipError
from mcip_qdrant.report import DeadLetter, RunReport
from mcip_qdrant.workers.hands import Hands

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one worker, and the clock of its last progress."""

    def __init__(self, queue_length: Callable[[], int], hands: Hands) -> None:
        """Register.

        Args:
            queue_length: chunks that wait in the queues of this worker.
            hands: what it has in hand.
        """
        self._hands = hands
        self.registry = CollectorRegistry()
        self._images = Counter("mcip_qdrant_images", "Images by fate", ["outcome"], registry=self.registry)
        self._failures = Counter("mcip_qdrant_failures", "Dead letters by reason", ["reason"], registry=self.registry)
        self._chunks = Counter("mcip_qdrant_chunks", "Chunks finished or handed on", registry=self.registry)
        self._stages = Counter("mcip_qdrant_stage_seconds", "Seconds spent", ["stage"], registry=self.registry)
        self._batches = Histogram(
            "mcip_qdrant_batch_size", "Images per model call", buckets=_BATCH_BUCKETS, registry=self.registry
        )
        self._provider = Info("mcip_qdrant_provider", "Execution provider that is active", registry=self.registry)
        self._in_hand = Gauge("mcip_qdrant_chunks_in_hand", "Chunks being worked on", registry=self.registry)
        self._idle = Gauge(
            "mcip_qdrant_seconds_without_progress",
            "Since the last progress, of the worker or of the chunk in hand that stands still longest",
            registry=self.registry,
        )
        self._queue = Gauge("mcip_qdrant_queue_length", "Chunks waiting for workers like this", registry=self.registry)
        self._queue_length = queue_length
        self._last_progress = monotonic()
        self._idle.set_function(self._still_for)
        self._in_hand.set_function(lambda: len(hands))
        self._queue.set_function(self._length_or_nan)

    def say_provider(self, provider: str, precision: str, model: str) -> None:
        """What runs the model."""
        self._provider.info({"provider": provider, "precision": precision, "model": model})

    def progress(self) -> None:
        """Something was read, encoded or written."""
        self._last_progress = monotonic()

    def batch(self, size: int) -> None:
        """One model call has ended."""
        self._batches.observe(size)
        self.progress()

    def report(self, report: RunReport, letters: Sequence[DeadLetter]) -> None:
        """One attempt at a chunk has ended."""
        self._chunks.inc()
        for outcome in ("embedded", "unchanged", "failed"):
            self._images.labels(outcome).inc(getattr(report, outcome))
        for letter in letters:
            self._failures.labels(letter.reason.value).inc()
        for stage, seconds in report.seconds.items():
            self._stages.labels(stage).inc(seconds)
        self.progress()

    def took_message(self) -> None:
        """A message came from the queue: what lay idle was waiting, not stalled."""
        if not self._hands:
            self.progress()

    def stalled_for(self) -> float:
        """Seconds without progress, of the worker or of one chunk, although there is work; 0 if there is none, or if Redis cannot tell."""
        still = self._still_for()
        if self._hands:
            return still
        try:
            return still if self._queue_length() > 0 else 0.0
        except McipError:
            return 0.0

    def _still_for(self) -> float:
        # The others going on does not help a chunk that hangs.
        return max(monotonic() - self._last_progress, self._hands.still_for())

    def _length_or_nan(self) -> float:
        try:
            return float(self._queue_length())
        except McipError:
            return float("nan")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Scrapes every few seconds are no news."""


def serve(metrics: Metrics, host: str, port: int, stall_s: float) -> WSGIServer:
    """Serve `/metrics` and `/health` from a thread.

    `/health` answers 503 once there was no progress for `stall_s` seconds although work was there.

    Raises:
        ConfigurationError: the port is taken.
    """
    exposition = make_wsgi_app(metrics.registry)

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            page: Iterable[bytes] = exposition(environ, start_response)
            return page
        if path != "/health":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/metrics or /health\n"]
        stalled = metrics.stalled_for()
        healthy = stalled < stall_s
        start_response("200 OK" if healthy else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"ok\n" if healthy else f"no progress for {stalled:.0f} s although work is queued\n".encode()]

    try:
        server = make_server(host, port, answer, server_class=_Server, handler_class=_Quiet)
    except OSError as exc:
        raise ConfigurationError(
            f"metrics endpoint {host}:{port}: {exc.strerror}; choose another --metrics-port"
        ) from exc
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server

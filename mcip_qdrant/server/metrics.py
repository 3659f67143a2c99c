"""What a server tells its operators: Prometheus metrics of requests, batches and queues."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "mcip_qdrant_http_requests", "Answers by route and status", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "mcip_qdrant_http_request_seconds", "From request to answer", ["route"], registry=self.registry
        )
        self._in_flight = Gauge("mcip_qdrant_http_requests_in_flight", "Being answered", registry=self.registry)
        self._rows = Histogram(
            "mcip_qdrant_batch_size", "Rows per model call", ["tower"], buckets=_BATCH_BUCKETS, registry=self.registry
        )
        self._calls = Histogram(
            "mcip_qdrant_model_call_seconds", "Of one model call", ["tower"], registry=self.registry
        )
        self._waiting = Gauge("mcip_qdrant_rows_waiting", "For the model", ["tower"], registry=self.registry)
        self._model = Info("mcip_qdrant_model", "What answers", registry=self.registry)

    def say_model(self, model: str, space_id: str, provider: str) -> None:
        """What is served."""
        self._model.info({"model": model, "space_id": space_id, "provider": provider})

    def request(self, route: str, status: int, seconds: float) -> None:
        """One request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def in_flight(self, change: int) -> None:
        """A request came (+1) or went (-1)."""
        self._in_flight.inc(change)

    def batch(self, tower: str, rows: int, seconds: float) -> None:
        """One model call has ended."""
        self._rows.labels(tower).observe(rows)
        self._calls.labels(tower).observe(seconds)

    def watch_queue(self, tower: str, length: Callable[[], int]) -> None:
        """Where to read how many rows wait."""
        self._waiting.labels(tower).set_function(lambda: float(length()))

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

"""One worker process: everything it needs, opened and checked in an order that tells the cheap mistakes first."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final, Self

import numpy as np
import structlog
from numpy.typing import NDArray

from mcip_qdrant.bundle import Bundle
from mcip_qdrant.collection import check_space, describe, registered_root
from mcip_qdrant.cpus import available_cpus
from mcip_qdrant.decode import DecodeLimits
from mcip_qdrant.encoder import ImageEncoder
from mcip_qdrant.errors import BrokerError, ConfigurationError, McipError, MessageError
from mcip_qdrant.ingest import WRITE_SIZE, default_batch_size, open_encoder
from mcip_qdrant.pipeline import PipelineSettings
from mcip_qdrant.points import RunStamp
from mcip_qdrant.session import choose_provider, default_precision
from mcip_qdrant.stages import Sink
from mcip_qdrant.store import Store, open_store
from mcip_qdrant.verify import require, verify
from mcip_qdrant.workers import metrics as metrics_page
from mcip_qdrant.workers.broker import queue_name
from mcip_qdrant.workers.guard import GuardedSink
from mcip_qdrant.workers.hands import Hands
from mcip_qdrant.workers.ledger import Ledger
from mcip_qdrant.workers.message import Chunk
from mcip_qdrant.workers.metrics import Metrics
from mcip_qdrant.workers.processor import ChunkProcessor
from mcip_qdrant.workers.queue import Queues
from mcip_qdrant.workers.settings import WorkerSettings

logger = logging.getLogger(__name__)

_STORE_ATTEMPTS: Final = 3
_GOLDEN: Final = 64
_KEPT_ROOTS: Final = 100


class SharedEncoder:
    """The worker's one encoder, for all its chunks: never more calls at once than it takes side by side."""

    def __init__(self, encoder: ImageEncoder, metrics: Metrics) -> None:
        self._encoder, self._metrics = encoder, metrics
        self._places = threading.BoundedSemaphore(encoder.batches_at_once)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode uint8 `[B, H, W, 3]` to float32 `[B, D]`."""
        with self._places:
            vectors = self._encoder.encode(pixels)
        self._metrics.batch(len(pixels))
        return vectors


@dataclass(slots=True)
class Runtime:
    """What a worker's chunks share."""

    settings: WorkerSettings
    bundle: Bundle
    encoder: ImageEncoder
    batch_size: int
    store: Store
    ledger: Ledger
    queues: Queues
    hands: Hands
    metrics: Metrics
    name: str
    failure: Exception | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    _shown_roots: dict[tuple[str, str, str], Path | None] = field(default_factory=dict)

    @classmethod
    def open(cls, settings: WorkerSettings, make_queues: Callable[[], Queues], *, api_key: str | None) -> Self:
        """Open and check: broker, Qdrant, bundle, device, and the golden vectors on the provider that will do the work.

        Raises:
            McipError: one thing is not in order; its exit code says whether trying again may help.
        """
        ledger = Ledger(settings.broker)
        if "://" not in settings.qdrant:
            raise ConfigurationError(
                "a worker needs a Qdrant server: --qdrant http://HOST:6333 (embedded mode is for one process)"
            )
        patience_s = max(5, int(settings.broker.visibility_timeout_s / 6))
        store = open_store(settings.qdrant, api_key=api_key, timeout_s=patience_s)
        bundle = Bundle.open(settings.bundle)
        if describe(store, settings.collection) is not None:
            check_space(store, settings.collection, bundle.manifest)
        precision = settings.precision or default_precision(choose_provider(settings.device))
        bundle.check_hashes(bundle.graph("visual", precision))
        encoder = open_encoder(bundle, settings.device, precision)
        started = monotonic()
        require(verify(bundle, device=settings.device, precision=precision, towers=("visual",)))
        seconds_per_image = (monotonic() - started) / _GOLDEN
        batch_size = settings.batch_size or min(
            default_batch_size(encoder), max(1, int(settings.chunk_budget_s / 4 / seconds_per_image))
        )
        queues = make_queues()
        names = [queue_name(bundle.manifest.space_id, source) for source in settings.roots]
        hands = Hands()
        metrics = Metrics(lambda: queues.length(names), hands)
        metrics.say_provider(encoder.provider, precision, bundle.manifest.model)
        name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
        runtime = cls(settings, bundle, encoder, batch_size, store, ledger, queues, hands, metrics, name)
        runtime.beat()
        if settings.metrics_port:
            metrics_page.serve(metrics, settings.metrics_host, settings.metrics_port, settings.stall_s)
        threading.Thread(target=runtime._beat_on, name="heartbeat", daemon=True).start()
        return runtime

    @property
    def queue_names(self) -> list[str]:
        """The queues that this worker can serve."""
        return [queue_name(self.bundle.manifest.space_id, source) for source in self.settings.roots]

    def beat(self) -> None:
        """Tell the ledger that this worker lives, what it is, and what it has in hand."""
        about = {
            "space_id": self.bundle.manifest.space_id,
            "model": self.bundle.manifest.model,
            "sources": sorted(self.settings.roots),
            "provider": self.encoder.provider,
            "idle_s": round(self.metrics.stalled_for(), 1),
        }
        self.ledger.beat(self.name, about, self.hands.tokens())

    def _beat_on(self) -> None:
        left = threading.Event()
        while not left.wait(self.settings.broker.alive_for_s / 5):
            try:
                self.beat()
            except BrokerError as exc:
                logger.warning("no heartbeat: %s", exc)
            except Exception as exc:  # noqa: BLE001 - whatever it is
                # Without a heartbeat others take its chunks over. It beats on, for those that it still has in hand.
                self.abort(exc)

    def processor(self) -> ChunkProcessor:
        """What works on the chunks."""
        return ChunkProcessor(
            name=self.name,
            ledger=self.ledger,
            workplace=self,
            encoder=SharedEncoder(self.encoder, self.metrics),
            publish=self.queues.publish,
            abort=self.abort,
            log=structlog.get_logger("mcip_qdrant.worker"),
            budget_s=self.settings.chunk_budget_s,
            memory_mb=self.settings.memory_mb,
            hands=self.hands,
            stopping=self.stopping,
            on_report=self.metrics.report,
            on_progress=self.metrics.progress,
        )

    def check(self, chunk: Chunk) -> None:
        """Refuse what is not for this worker.

        Raises:
            MessageError: it is for another model, or for a source that this worker does not have.
        """
        space_id = self.bundle.manifest.space_id
        if chunk.space_id != space_id:
            raise MessageError(f"for space_id {chunk.space_id[:12]}; this worker's bundle is {space_id[:12]}")
        if chunk.source not in self.settings.roots:
            raise MessageError(f"for source {chunk.source!r}; this worker has {', '.join(self.settings.roots)}")

    def sink_for(self, chunk: Chunk) -> Sink:
        """Where a chunk's points go, guarded."""
        return GuardedSink.of(self.store, chunk.collection, self.bundle.manifest, attempts=_STORE_ATTEMPTS)

    def settings_for(self, chunk: Chunk) -> PipelineSettings:
        """How a chunk's images are worked on here."""
        root = self.settings.roots[chunk.source]
        return PipelineSettings(
            stamp=RunStamp(chunk.run, chunk.ingested_at, chunk.decode),
            roots={chunk.source: root},
            uri_roots={chunk.source: self._shown_root(chunk) or root},
            preprocess=self.bundle.manifest.preprocess,
            batch_size=self.batch_size,
            decode_threads=self.settings.decode_threads or available_cpus(),
            limits=DecodeLimits(max_bytes=chunk.max_bytes, max_pixels=chunk.max_pixels),
            checksum=chunk.checksum,
            encodes_at_once=self.encoder.batches_at_once,
            write_size=WRITE_SIZE,
            columns=lambda ref: chunk.columns.get(ref.relative, {}),
        )

    def _shown_root(self, chunk: Chunk) -> Path | None:
        # By run: between two runs the archive may have moved.
        key = (chunk.run, chunk.collection, chunk.source)
        if key not in self._shown_roots:
            if len(self._shown_roots) > _KEPT_ROOTS:
                self._shown_roots.clear()
            self._shown_roots[key] = registered_root(self.store, chunk.collection, chunk.source)
        return self._shown_roots[key]

    def abort(self, error: Exception) -> None:
        """End this worker after what it has in hand; the process then exits with the error's code."""
        if self.stopping.is_set() and isinstance(error, BrokerError):
            # Told to leave, it does not wait for Redis: what it has in hand is handed out again.
            logger.warning("left unfinished: %s", error)
        elif self.failure is None:
            self.failure = error
            logger.error("this worker ends: %s", error, exc_info=not isinstance(error, McipError))
            os.kill(os.getpid(), signal.SIGTERM)

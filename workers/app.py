"""The Celery side of a worker: `mcip-qdrant worker` and `celery -A mcip_qdrant.workers.app worker` both end up here.

Celery only carries chunks; what happens to one is in `processor`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import structlog
from celery import Celery, signals
from celery.exceptions import Reject

from mcip_qdrant.errors import ConfigurationError, McipError
from mcip_qdrant.exit_codes import INTERRUPTED
from mcip_qdrant.workers.broker import TASK, BrokerSettings, broker_settings, make_celery, open_redis
from mcip_qdrant.workers.processor import ChunkProcessor, ChunkReturnedError
from mcip_qdrant.workers.queue import Queues
from mcip_qdrant.workers.runtime import Runtime
from mcip_qdrant.workers.settings import WorkerSettings, visibility_timeout

logger = logging.getLogger(__name__)


class WorkerProgram:
    """Ties one Celery app to one runtime, which is opened when Celery starts the worker."""

    def __init__(
        self, app: Celery, read_settings: Callable[[], WorkerSettings], api_key: Callable[[], str | None]
    ) -> None:
        self.app, self._read_settings, self._api_key = app, read_settings, api_key
        self.runtime: Runtime | None = None
        self._processor: ChunkProcessor | None = None
        self._interrupted = False
        app.task(name=TASK)(self._ingest_chunk)
        # Strong references: Celery's signals hold their receivers weakly.
        signals.celeryd_init.connect(self._on_init, weak=False)
        signals.worker_ready.connect(self._on_ready, weak=False)
        signals.worker_shutting_down.connect(self._on_shutting_down, weak=False)
        signals.worker_shutdown.connect(self._on_shutdown, weak=False)
        signals.setup_logging.connect(configure_logging, weak=False)

    def _ingest_chunk(self, message: dict[str, Any]) -> None:
        if self._processor is None or self.runtime is None:
            raise Reject("the worker is not ready", requeue=True)
        self.runtime.metrics.took_message()
        try:
            self._processor.handle(message)
        except ChunkReturnedError as exc:
            raise Reject("returned to the queue", requeue=True) from exc
        except Exception as exc:
            # Celery would log it and drop the message. Redis is away for good, or this is a defect: let a fresh worker try.
            self.runtime.abort(exc)
            raise Reject("returned to the queue", requeue=True) from exc

    def _on_init(self, conf: Any, options: dict[str, Any], **_: Any) -> None:
        """Refuse to start unless all is in order. Exceptions would only be logged here; SystemExit ends the process."""
        pool = options.get("pool") or options.get("pool_cls") or conf.worker_pool
        name = pool.__module__.rpartition(".")[2] if isinstance(pool, type) else str(pool)
        if name not in {"thread", "threads", "solo"}:
            _refuse(f"--pool {name}: an ONNX session does not survive a fork; use threads (the default)", 2)
        configure_logging()
        try:
            settings = self._read_settings()
            self.runtime = Runtime.open(settings, lambda: self._queues(settings), api_key=self._api_key())
        except McipError as exc:
            _refuse(str(exc), exc.exit_code)
        except Exception:
            logger.exception("this worker cannot start")
            raise SystemExit(1) from None
        else:
            conf.worker_concurrency = settings.concurrency
            conf.task_queues = {name: {"exchange": name, "routing_key": name} for name in self.runtime.queue_names}
            self._processor = self.runtime.processor()
            logger.warning(
                "worker %s: %s on %s, batches of %d, sources %s",
                self.runtime.name,
                self.runtime.bundle.manifest.model,
                self.runtime.encoder.provider,
                self.runtime.batch_size,
                ", ".join(settings.roots),
            )

    def _queues(self, settings: WorkerSettings) -> Queues:
        # Impatient: the health page must answer while Redis is away.
        return Queues(self.app, settings.broker, open_redis(settings.broker))

    def _on_ready(self, **_: Any) -> None:
        # Celery's own handlers drop what is in hand, and with a pool of threads they fail at that.
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        """Ctrl-C: the first one as SIGTERM, the second one at once."""
        if self._interrupted:
            os._exit(INTERRUPTED)
        self._interrupted = True
        os.kill(os.getpid(), signal.SIGTERM)

    def _on_shutting_down(self, **_: Any) -> None:
        """SIGTERM: what is encoded gets written, the rest of each chunk goes back."""
        if self.runtime is not None:
            self.runtime.stopping.set()
            self.runtime.ledger.patience.end()

    def _on_shutdown(self, sender: Any, **_: Any) -> None:
        if self.runtime is not None:
            # `celery -A` exits with it.
            sender.exitcode = self.exit_code() or sender.exitcode
            try:
                self.runtime.ledger.leave(self.runtime.name)
            except McipError as exc:
                logger.warning("%s; what this worker held is handed out again after the visibility timeout", exc)

    def exit_code(self) -> int:
        """0, that of the error that ended the worker, or that of an interruption."""
        failure = self.runtime.failure if self.runtime else None
        if failure is None:
            return INTERRUPTED if self._interrupted else 0
        return failure.exit_code if isinstance(failure, McipError) else 1


def _refuse(message: str, code: int) -> None:
    sys.stderr.write(f"mcip-qdrant: {message}\n")
    raise SystemExit(code)


def configure_logging(**_: Any) -> None:
    """One JSON object per line on stderr, for chunks and for everything else that is logged."""
    shared: list[Any] = [structlog.stdlib.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("mcip_qdrant.worker").setLevel(logging.INFO)
    # Celery warns, with a traceback, of every chunk that a leaving worker returns.
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)


def worker_program(settings: WorkerSettings, api_key: str | None) -> WorkerProgram:
    """The program of `mcip-qdrant worker`."""
    return WorkerProgram(make_celery(settings.broker), lambda: settings, lambda: api_key)


def _from_environment() -> Celery:
    from mcip_qdrant.credentials import api_key

    # Importing must not fail for a variable: `celery --help` imports, too, and Celery shows a traceback. What is wrong is told at
    # the start.
    try:
        settings = broker_settings(
            os.environ.get("MCIP_QDRANT_BROKER") or "redis://localhost:6379/0", visibility_timeout()
        )
    except ConfigurationError:
        settings = BrokerSettings("memory://")
    celery = make_celery(settings)
    WorkerProgram(celery, WorkerSettings.from_environment, api_key)
    return celery


def __getattr__(name: str) -> Any:
    # Only `celery -A` asks for `app`; the command line makes its own.
    if name == "app":
        globals()["app"] = _from_environment()
        return globals()["app"]
    raise AttributeError(name)

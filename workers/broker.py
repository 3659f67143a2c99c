"""Redis as message broker and ledger: URLs, secrets, TLS, Celery settings, and errors in our words."""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote, urlsplit, urlunsplit

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from mcip_qdrant.credentials import secret
from mcip_qdrant.errors import BrokerError, ConfigurationError, McipError

TASK = "mcip_qdrant.ingest_chunk"
DEFAULT_VISIBILITY_TIMEOUT_S = 120
# Redis away: tries for about five minutes before a call gives up.
_RETRIES = 150
_DATABASE = re.compile(r"/?|/\d{1,9}", re.ASCII)
_SOCKET_TIMEOUT_S = 20
_SAY_AGAIN_S = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Where Redis is and how long a message may stay in a worker's hands before others get it.

    `repr` and messages show the URL without its password.
    """

    url: str = field(repr=False)
    visibility_timeout_s: float = DEFAULT_VISIBILITY_TIMEOUT_S

    @property
    def alive_for_s(self) -> float:
        """How long a worker's heartbeat counts."""
        return min(15.0, self.visibility_timeout_s / 4)

    @property
    def shown(self) -> str:
        """The URL without user and password."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))

    @property
    def tls(self) -> dict[str, Any]:
        """TLS arguments of redis-py and kombu, for `rediss://`."""
        if not self.url.lower().startswith("rediss://"):
            return {}
        authority = os.environ.get("MCIP_QDRANT_BROKER_CA")
        return {"ssl_cert_reqs": ssl.CERT_REQUIRED} | ({"ssl_ca_certs": authority} if authority else {})


def broker_settings(url: str, visibility_timeout_s: float = DEFAULT_VISIBILITY_TIMEOUT_S) -> BrokerSettings:
    """Check a broker URL and add the password from the environment, if it has none.

    Raises:
        ConfigurationError: not a Redis URL, or the password file cannot be read.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and parts.port != 0
        # redis-py and kombu disagree on what else may stand there.
        usable = usable and _DATABASE.fullmatch(parts.path) is not None
    except ValueError:  # a port that is no number, or half an IPv6 address
        usable = False
    if not usable:
        raise ConfigurationError(
            "--broker: expected redis://HOST:6379/0 or rediss://HOST:6379/0 (0: number of the database)"
        )
    if not 4 <= visibility_timeout_s <= 3600:
        raise ConfigurationError(f"MCIP_QDRANT_VISIBILITY_TIMEOUT_S={visibility_timeout_s}: expected 4 to 3600 seconds")
    url = urlunsplit(parts)  # the scheme in small letters, as redis-py and kombu want it
    password = secret("MCIP_QDRANT_BROKER_PASSWORD")
    if password and parts.password is None:
        host = parts.netloc.rpartition("@")[2]
        netloc = f"{parts.username or ''}:{quote(password, safe='')}@{host}"
        url = urlunsplit((parts.scheme, netloc, parts.path, parts.query, ""))
    return BrokerSettings(url, visibility_timeout_s)


def queue_name(space_id: str, source: str) -> str:
    """The queue of one model and one source: a worker only ever gets chunks that it can read and may write."""
    return f"mcip_qdrant.{space_id[:16]}.{source}"


class Patience(Retry):
    """Tries for about five minutes while Redis is away or full; `end` makes all connections give up at their next try."""

    def __init__(self, shown: str) -> None:
        super().__init__(ExponentialWithJitterBackoff(base=0.1, cap=2), _RETRIES)
        self._shown = shown
        self._said_at: dict[type[Exception], float] = {}

    def __deepcopy__(self, _memo: object) -> Self:
        # redis-py gives each connection a copy; `end` must reach them all.
        return self

    def call_with_retry(self, do: Any, fail: Any, is_retryable: Any = None, with_failure_count: bool = False) -> Any:
        """As of redis-py, but a password that is refused stays so, and a person should know what is waited for."""

        def may_pass(error: Exception) -> bool:
            if isinstance(error, redis.AuthenticationError):
                return False
            now = time.monotonic()
            if self.get_retries() and now - self._said_at.get(type(error), -_SAY_AGAIN_S) >= _SAY_AGAIN_S:
                self._said_at[type(error)] = now
                logger.warning("Redis at %s cannot be used, trying for five minutes: %s", self._shown, error)
            return is_retryable is None or bool(is_retryable(error))

        return super().call_with_retry(do, fail, may_pass, with_failure_count)

    def end(self) -> None:
        """A process that is told to leave does not wait."""
        self.update_retries(0)


def open_redis(settings: BrokerSettings, patience: Patience | None = None) -> redis.Redis:
    """A client whose calls, with patience, survive a restart of Redis: every ledger write may be repeated.

    Raises:
        BrokerError: Redis does not answer now.
        ConfigurationError: it refuses the password.
    """
    options: dict[str, Any] = {
        "socket_timeout": _SOCKET_TIMEOUT_S,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "decode_responses": True,
        **({} if not settings.tls else {**settings.tls, "ssl_cert_reqs": "required"}),
    }
    with _url_errors(), broker_errors(settings):
        # Once without patience: a wrong address should be told at once.
        with redis.Redis.from_url(settings.url, retry=Retry(ExponentialWithJitterBackoff(), 0), **options) as probe:
            probe.ping()
        return redis.Redis.from_url(
            settings.url,
            retry=patience or Retry(ExponentialWithJitterBackoff(), 0),
            retry_on_error=[redis.BusyLoadingError, redis.ReadOnlyError, redis.OutOfMemoryError],
            **options,
        )


@contextmanager
def _url_errors() -> Iterator[None]:
    """What redis-py says of options behind the `?` of a URL that it does not know, or whose values make no sense."""
    try:
        yield
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"--broker: {exc}") from exc


@contextmanager
def broker_errors(settings: BrokerSettings) -> Iterator[None]:
    """Translate what redis-py and kombu raise."""
    try:
        yield
    except McipError:
        raise
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as exc:
        raise ConfigurationError(
            f"Redis at {settings.shown} refused the password; set MCIP_QDRANT_BROKER_PASSWORD or "
            f"MCIP_QDRANT_BROKER_PASSWORD_FILE ({exc})"
        ) from exc
    except redis.OutOfMemoryError as exc:
        raise BrokerError(f"Redis at {settings.shown} is full (maxmemory reached): {exc}") from exc
    except (redis.RedisError, OperationalError, OSError) as exc:
        raise BrokerError(f"Redis at {settings.shown} cannot be used: {exc}") from exc


def make_celery(settings: BrokerSettings) -> Celery:
    """A Celery app with the settings that the guarantees rest on; the reasons are in docs/adr/0007."""
    app = Celery("mcip_qdrant", broker=settings.url, set_as_current=False)
    tls = {"broker_use_ssl": settings.tls} if settings.tls else {}
    app.conf.update(
        # JSON only: pickle would run code that a message carries.
        accept_content=["json"],
        task_serializer="json",
        # A message goes only after its points are written.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        # One chunk per thread: a killed worker has no more in hand.
        worker_prefetch_multiplier=1,
        worker_pool="threads",
        worker_concurrency=3,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A Redis that is full refuses writes as "channel errors", which would end the worker.
        broker_channel_error_retry=True,
        visibility_timeout=settings.visibility_timeout_s,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout_s,
            # With kombu's defaults (10 s, each 10th time) a running peer takes over a dead worker's chunks 100 s late.
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            # Without it a publish hangs for ever on a dead connection.
            "socket_timeout": _SOCKET_TIMEOUT_S,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "retry_on_timeout": True,
        },
        **tls,
    )
    return app

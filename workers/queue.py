"""The task queues: publish chunks, and see how many wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Final

import redis
import tenacity
from celery import Celery
from kombu.exceptions import OperationalError

from mcip_qdrant.workers.broker import TASK, BrokerSettings, broker_errors, queue_name
from mcip_qdrant.workers.message import Chunk

logger = logging.getLogger(__name__)

_PATIENCE_S: Final = 300
_SAY_AGAIN_S: Final = 60.0


class Queues:
    """Publishing side of the queues, for dispatcher and workers alike; safe to use from several threads."""

    def __init__(self, app: Celery, settings: BrokerSettings, client: redis.Redis) -> None:
        """Nothing is sent yet.

        Args:
            client: asks for the lengths; its patience is that of `length`.
        """
        self._app, self._settings, self._client = app, settings, client
        self._said_at = -_SAY_AGAIN_S

    def publish(self, chunk: Chunk) -> None:
        """Send one chunk, with patience while Redis is away.

        Raises:
            BrokerError: Redis stayed away.
        """
        with broker_errors(self._settings):
            for attempt in tenacity.Retrying(
                retry=tenacity.retry_if_exception_type((OperationalError, OSError)),
                wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
                stop=tenacity.stop_after_delay(_PATIENCE_S),
                before_sleep=self._say_why,
                reraise=True,
            ):
                with attempt:
                    self._app.send_task(
                        TASK, args=[chunk.to_message()], queue=queue_name(chunk.space_id, chunk.source), retry=False
                    )

    def _say_why(self, state: tenacity.RetryCallState) -> None:
        # Once for a while, not once a try: Redis may be away or full for minutes, and a person should know what is waited for.
        if time.monotonic() - self._said_at > _SAY_AGAIN_S:
            self._said_at = time.monotonic()
            why = state.outcome.exception() if state.outcome else None
            logger.warning("Redis at %s takes no message, trying for five minutes: %s", self._settings.shown, why)

    def length(self, queues: Iterable[str]) -> int:
        """Chunks that wait in some queues; those in workers' hands are not among them.

        A queue is a Redis list of the queue's name, as Celery's monitoring guide documents.

        Raises:
            BrokerError: Redis is away.
        """
        with broker_errors(self._settings):
            return sum(int(self._client.llen(name)) for name in queues)

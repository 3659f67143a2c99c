"""A real Redis for the tests of the workers, empty at the start of each."""

from __future__ import annotations

from collections.abc import Iterator

import kombu.pools
import pytest
import redis
from service_fixtures import start_redis
from services import RedisService

from mcip_qdrant.workers.broker import BrokerSettings, broker_settings, make_celery
from mcip_qdrant.workers.ledger import Ledger
from mcip_qdrant.workers.queue import Queues


@pytest.fixture(scope="session")
def redis_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisService]:
    """One server for all these tests; nobody stops it."""
    with start_redis(tmp_path_factory.mktemp("redis"), aof=False) as server:
        yield server


@pytest.fixture
def broker(redis_service: RedisService) -> BrokerSettings:
    """The server, empty."""
    with redis.Redis.from_url(redis_service.url) as client:
        client.flushall()
    return broker_settings(redis_service.url)


@pytest.fixture
def ledger(broker: BrokerSettings) -> Iterator[Ledger]:
    """An empty ledger."""
    opened = Ledger(broker)
    yield opened
    opened.redis.close()


@pytest.fixture
def queues(broker: BrokerSettings, ledger: Ledger) -> Iterator[Queues]:
    """Empty queues."""
    app = make_celery(broker)
    yield Queues(app, broker, ledger.redis)
    app.close()
    kombu.pools.reset()  # its connections outlive the app, and remember queues that the next test's Redis does not have

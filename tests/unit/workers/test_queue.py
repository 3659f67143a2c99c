"""Publishing through Celery into a real Redis, and counting what waits there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kombu.pools
import pytest
from service_fixtures import start_redis
from services import RedisService
from unit_support import SPACE_B
from worker_support import QUEUE, SOURCE, chunk, taken

from mcip_qdrant.errors import BrokerError
from mcip_qdrant.workers import queue
from mcip_qdrant.workers.broker import broker_settings, make_celery, open_redis, queue_name
from mcip_qdrant.workers.ledger import Ledger
from mcip_qdrant.workers.queue import Queues


def test_what_is_published_waits_in_its_queue(queues: Queues, ledger: Ledger) -> None:
    assert queues.length([QUEUE]) == 0
    sent = [chunk(f"{number} ä.png", columns={f"{number} ä.png": {"n": [number]}}) for number in range(3)]
    for one in sent:
        queues.publish(one)
    assert queues.length([QUEUE]) == 3
    assert [taken(ledger, QUEUE) for _ in range(4)] == [*sent, None]  # first come, first served
    assert queues.length([QUEUE]) == 0


def test_models_and_sources_have_queues_of_their_own(queues: Queues, ledger: Ledger) -> None:
    for space_id, source in ((SPACE_B, SOURCE), (chunk().space_id, "ä/%2F t"), (chunk().space_id, "ä/%2F t")):
        queues.publish(chunk(space_id=space_id, source=source))
    names = [QUEUE, queue_name(SPACE_B, SOURCE), queue_name(chunk().space_id, "ä/%2F t")]
    assert [queues.length([name]) for name in names] == [0, 1, 2]
    assert queues.length(names) == 3
    assert queues.length([]) == 0
    other = taken(ledger, names[1])
    assert other is not None
    assert other.space_id == SPACE_B


def test_several_threads_publish(queues: Queues, ledger: Ledger) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(queues.publish, [chunk(f"{number}.png") for number in range(40)]))
    found = {one.images[0] for _ in range(40) if (one := taken(ledger, QUEUE))}
    assert found == {f"{number}.png" for number in range(40)}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[RedisService, Queues]]:
    """A Redis to be stopped, and its queues."""
    with start_redis(tmp_path / "own") as server:
        settings = broker_settings(server.url)
        client, app = open_redis(settings), make_celery(settings)
        yield server, Queues(app, settings, client)
        client.close()
        app.close()
        kombu.pools.reset()


def test_publishing_waits_while_redis_is_away(own: tuple[RedisService, Queues]) -> None:
    server, queues = own
    queues.publish(chunk("a.png"))
    server.kill()
    with pytest.raises(BrokerError, match="cannot be used"):
        queues.length([QUEUE])
    publishing = threading.Thread(target=queues.publish, args=(chunk("b.png"),))
    publishing.start()
    publishing.join(0.5)
    assert publishing.is_alive()
    server.start()
    publishing.join(30)
    assert not publishing.is_alive()
    assert queues.length([QUEUE]) == 2


def test_publishing_does_not_wait_for_ever(own: tuple[RedisService, Queues], monkeypatch: pytest.MonkeyPatch) -> None:
    server, queues = own
    monkeypatch.setattr(queue, "_PATIENCE_S", 0.5)
    queues._app.conf.broker_transport_options["max_retries"] = 1  # kombu's own tries would take six seconds
    server.kill()
    with pytest.raises(BrokerError, match=f"Redis at {broker_settings(server.url).shown} cannot be used"):
        queues.publish(chunk())


def test_a_full_redis(
    own: tuple[RedisService, Queues], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server, queues = own
    queues.publish(chunk())
    monkeypatch.setattr(queue, "_PATIENCE_S", 3)
    with open_redis(broker_settings(server.url)) as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(BrokerError, match="maxmemory"):
            queues.publish(chunk())
        client.config_set("maxmemory", 0)
    queues.publish(chunk())
    assert queues.length([QUEUE]) == 2
    # What is waited for is told at once, and not with each try.
    (told,) = [record.getMessage() for record in caplog.records if record.name == queue.__name__]
    assert told.startswith("Redis at redis://")
    assert "maxmemory" in told


def test_a_redis_that_lost_everything(own: tuple[RedisService, Queues]) -> None:
    """Emptied by hand, say: what was in it is gone, but nothing new may get lost."""
    server, queues = own
    queues.publish(chunk("a.png"))
    with open_redis(broker_settings(server.url)) as client:
        client.flushall()
    queues.publish(chunk("b.png"))
    assert queues.length([QUEUE]) == 1

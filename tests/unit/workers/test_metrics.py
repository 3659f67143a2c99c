"""What a worker tells its operators, fetched over HTTP as Prometheus and health checks do."""

from __future__ import annotations

import math
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_fixtures import start_redis
from services import HOST
from worker_support import QUEUE, chunk, letter

from mcip_qdrant.errors import ConfigurationError, Reason
from mcip_qdrant.report import RunReport
from mcip_qdrant.workers.broker import broker_settings, make_celery, open_redis
from mcip_qdrant.workers.hands import Hands
from mcip_qdrant.workers.metrics import Metrics, serve
from mcip_qdrant.workers.queue import Queues

Serve = Callable[..., str]


@pytest.fixture(scope="module")
def served() -> Iterator[Serve]:
    """Serves metrics on a free port, and says where."""
    servers: list[WSGIServer] = []

    def start(metrics: Metrics, stall_s: float = 180.0) -> str:
        servers.append(serve(metrics, HOST, 0, stall_s))
        return f"http://{HOST}:{servers[-1].server_port}"

    yield start
    with ThreadPoolExecutor(len(servers)) as threads:  # each takes half a second to hear of it
        list(threads.map(WSGIServer.shutdown, servers))
    for server in servers:
        server.server_close()


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def samples(url: str) -> dict[tuple[str, ...], float]:
    """What Prometheus reads: name and label values to number."""
    status, text = fetch(f"{url}/metrics")
    assert status == 200
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {
        (one.name, *(one.labels[label] for label in sorted(one.labels))): one.value
        for family in families
        for one in family.samples
    }


def test_a_page_that_prometheus_reads(served: Serve) -> None:
    hands = Hands()
    metrics = Metrics(lambda: 7, hands)
    url = served(metrics)
    metrics.say_provider("CPUExecutionProvider", "fp32", 'Tiny "A"')
    hands.take("one")
    hands.take("two")
    hands.let_go("one")
    for size in (1, 8, 8, 300):
        metrics.batch(size)
    seconds = {"read": 0.25, "decode": 1.5, "encode": 3.0, "upsert": 0.125}
    letters = [letter("a"), letter("b"), letter("c", Reason.GONE)]
    for _ in range(2):
        metrics.report(RunReport(embedded=5, unchanged=2, failed=3, seconds=dict(seconds)), letters)  # type: ignore[arg-type]
    found = samples(url)
    expected = {
        **{("mcip_qdrant_images_total", name): 2 * n for name, n in (("embedded", 5), ("unchanged", 2), ("failed", 3))},
        ("mcip_qdrant_failures_total", "corrupt"): 4,
        ("mcip_qdrant_failures_total", "gone"): 2,
        ("mcip_qdrant_chunks_total",): 2,
        **{("mcip_qdrant_stage_seconds_total", stage): 2 * spent for stage, spent in seconds.items()},
        ("mcip_qdrant_batch_size_count",): 4,
        ("mcip_qdrant_batch_size_sum",): 317,
        ("mcip_qdrant_batch_size_bucket", "1.0"): 1,
        ("mcip_qdrant_batch_size_bucket", "8.0"): 3,
        ("mcip_qdrant_batch_size_bucket", "256.0"): 3,
        ("mcip_qdrant_batch_size_bucket", "+Inf"): 4,
        ("mcip_qdrant_provider_info", 'Tiny "A"', "fp32", "CPUExecutionProvider"): 1,
        ("mcip_qdrant_chunks_in_hand",): 1,
        ("mcip_qdrant_queue_length",): 7,
    }
    assert {name: found[name] for name in expected} == expected
    assert 0 <= found["mcip_qdrant_seconds_without_progress",] < 60


def test_a_page_before_anything_has_happened(served: Serve) -> None:
    found = samples(served(Metrics(lambda: 0, Hands())))
    assert found["mcip_qdrant_queue_length",] == found["mcip_qdrant_chunks_in_hand",] == 0


def test_two_workers_in_one_process_do_not_share_numbers(served: Serve) -> None:
    one, other = Metrics(lambda: 1, Hands()), Metrics(lambda: 2, Hands())
    one.batch(4)
    assert samples(served(one))["mcip_qdrant_batch_size_count",] == 1
    assert samples(served(other))["mcip_qdrant_batch_size_count",] == 0


def test_health_turns_red_when_work_is_queued_and_nothing_moves(served: Serve) -> None:
    metrics = Metrics(lambda: 5, Hands())
    url = served(metrics, stall_s=100)
    assert fetch(f"{url}/health") == (200, "ok\n")
    time.sleep(0.05)
    assert 0.05 <= metrics.stalled_for() < 100
    metrics._last_progress -= 500
    status, said = fetch(f"{url}/health")
    assert status == 503
    assert re.fullmatch(r"no progress for 5\d\d s although work is queued\n", said)
    for step in (metrics.progress, lambda: metrics.batch(1), lambda: metrics.report(RunReport(), [])):
        metrics._last_progress -= 500
        assert fetch(f"{url}/health")[0] == 503
        step()
        assert fetch(f"{url}/health")[0] == 200


def test_a_chunk_in_hand_is_work_although_the_queue_is_empty(served: Serve) -> None:
    hands = Hands()
    metrics = Metrics(lambda: 0, hands)
    url = served(metrics, stall_s=100)
    metrics._last_progress -= 500
    metrics.took_message()
    hands.take("token")
    assert fetch(f"{url}/health")[0] == 200, "it waited for work, and has only just begun"
    metrics._last_progress -= 500
    assert fetch(f"{url}/health")[0] == 503
    hands.let_go("token")
    assert fetch(f"{url}/health")[0] == 200


def test_another_chunk_in_hand_is_no_progress() -> None:
    hands = Hands()
    metrics = Metrics(lambda: 0, hands)
    hands.take("one")
    metrics._last_progress -= 50
    metrics.took_message()
    hands.take("two")
    hands.let_go("two")
    assert metrics.stalled_for() >= 50


def test_a_chunk_that_stands_still_is_seen_although_the_others_move(served: Serve) -> None:
    hands = Hands()
    metrics = Metrics(lambda: 0, hands)
    url = served(metrics, stall_s=0.3)
    for token in ("hangs", "moves", "waits for its turn"):
        hands.take(token)
    for token in ("hangs", "moves", "nobody's"):
        hands.moved(token)
    time.sleep(0.4)
    hands.moved("moves")
    metrics.progress()
    assert fetch(f"{url}/health")[0] == 503
    hung_for = samples(url)["mcip_qdrant_seconds_without_progress",]
    assert hung_for >= 0.4
    hands.let_go("hangs")
    hands.moved("moves")
    metrics.progress()
    assert metrics.stalled_for() < hung_for
    assert sorted(hands.tokens()) == ["moves", "waits for its turn"]


def test_messages_that_are_only_looked_at_are_no_stall() -> None:
    """A chunk that another worker has in hand goes round in the queue: who looks at it is not held up by it."""
    metrics = Metrics(lambda: 1, Hands())
    metrics._last_progress -= 500
    metrics.took_message()
    assert metrics.stalled_for() < 100


def test_idle_without_work_is_healthy(served: Serve) -> None:
    metrics = Metrics(lambda: 0, Hands())
    metrics._last_progress -= 10_000
    url = served(metrics, stall_s=1)
    assert fetch(f"{url}/health") == (200, "ok\n")
    assert samples(url)["mcip_qdrant_seconds_without_progress",] >= 10_000


def test_redis_away_is_not_this_workers_fault(served: Serve, tmp_path: Path) -> None:
    with start_redis(tmp_path / "own") as server:
        settings = broker_settings(server.url)
        app = make_celery(settings)
        with open_redis(settings) as client:
            queues = Queues(app, settings, client)
            hands = Hands()
            metrics = Metrics(lambda: queues.length([QUEUE]), hands)
            url = served(metrics, stall_s=60)
            metrics._last_progress -= 100
            assert fetch(f"{url}/health")[0] == 200
            queues.publish(chunk())
            assert fetch(f"{url}/health")[0] == 503
            assert samples(url)["mcip_qdrant_queue_length",] == 1
            server.kill()
            started = time.monotonic()
            assert fetch(f"{url}/health") == (200, "ok\n")
            assert math.isnan(samples(url)["mcip_qdrant_queue_length",])
            assert time.monotonic() - started < 10
            # But with a chunk in hand it has something to do.
            hands.take("token")
            metrics._last_progress -= 100
            assert fetch(f"{url}/health")[0] == 503
            server.start()
            hands.let_go("token")
            assert fetch(f"{url}/health")[0] == 503
        app.close()


def test_other_pages(served: Serve) -> None:
    url = served(Metrics(lambda: 0, Hands()))
    for path in ("", "/", "/metricsx", "/health/", "/../health"):
        assert fetch(f"{url}{path}") == (404, "/metrics or /health\n"), path


def test_somebody_who_connects_and_says_nothing_holds_nobody_up(served: Serve) -> None:
    url = served(Metrics(lambda: 0, Hands()))
    with socket.create_connection((HOST, int(url.rpartition(":")[2]))):
        assert fetch(f"{url}/health")[0] == 200


def test_scrapes_are_no_news(served: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    url = served(Metrics(lambda: 0, Hands()))
    fetch(f"{url}/health")
    fetch(f"{url}/nothing")
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigurationError, match=f"metrics endpoint {HOST}:{port}: .*choose another --metrics-port"
        ):
            serve(Metrics(lambda: 0, Hands()), HOST, port, 1)


def test_an_address_that_is_not_here() -> None:
    with pytest.raises(ConfigurationError, match="metrics endpoint 192.0.2.1:"):
        serve(Metrics(lambda: 0, Hands()), "192.0.2.1", 0, 1)
    with pytest.raises(ConfigurationError, match="metrics endpoint no-such-host.invalid:"):
        serve(Metrics(lambda: 0, Hands()), "no-such-host.invalid", 0, 1)

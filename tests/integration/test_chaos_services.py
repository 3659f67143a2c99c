"""Redis and Qdrant stopped, killed, overloaded, slow and cut off in mid-run: the run ends complete by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from conftest import Exported
from distributed import Cluster, Program, wait_for
from distributed_checks import Archive, assert_ledger, assert_points, make_archive
from fault_proxy import Mode

pytestmark = pytest.mark.timeout(900)
SOURCES = ("redis", "full", "qdrant", "faults", "lost")
FAULTS: tuple[Mode, ...] = ("429", "503", "cut", "refuse", "slow")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, clip: Exported) -> Iterator[Cluster]:
    """Two workers that outlive everything that happens here."""
    home = tmp_path_factory.mktemp("services")
    roots = {f"{source}-{kind}": home / f"{source}-{kind}" for source in SOURCES for kind in ("short", "long")}
    for root in roots.values():
        root.mkdir()
    with Cluster(home / "cluster", clip.folder, roots) as running:
        running.start_workers(2)
        yield running


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    """The shared cluster, without faults and with a collection of the test's own."""
    shared.forget_points()
    return shared


def _archive(cluster: Cluster, source: str, images: int) -> Archive:
    return make_archive(cluster.roots[f"{source}-{'short' if images < 1000 else 'long'}"], images)


def _reach(cluster: Cluster, run: str, share: float, archive: Archive, dispatcher: Program) -> None:
    """Wait until that share of the images is settled."""
    wanted = share * len(archive.names)
    wait_for(lambda: cluster.settled(run) >= wanted or not dispatcher.running, 120, cluster)
    assert dispatcher.running, dispatcher


def _assert_all_in(cluster: Cluster, run: str, archive: Archive, dispatcher: Program) -> None:
    assert dispatcher.end(0).json["embedded"] == len(archive.names)
    cluster.wait_until_quiet()
    assert_ledger(cluster, run, archive)
    assert_points(cluster, archive)
    assert all(worker.running for worker in cluster.workers), cluster


@pytest.mark.parametrize(("images", "away_s"), [(400, 2), pytest.param(3000, 30, marks=pytest.mark.chaos)])
def test_redis_is_killed_and_stopped_and_comes_back(cluster: Cluster, images: int, away_s: float) -> None:
    archive = _archive(cluster, "redis", images)
    dispatcher = cluster.ingest(archive.folder, "--chunk-size", 20, "--look-ahead", 5)
    run = cluster.newest_run(cluster.runs())
    cluster.proxy.delay = 0.3
    cluster.proxy.mode = "slow"
    for share, end in ((0.1, cluster.redis.kill), (0.5, cluster.redis.stop)):
        _reach(cluster, run, share, archive, dispatcher)
        end()
        time.sleep(away_s)
        cluster.redis.start()
    cluster.proxy.mode = "pass"
    _assert_all_in(cluster, run, archive, dispatcher)


def test_redis_is_full_for_a_while(cluster: Cluster) -> None:
    """Nobody ends, neither those who work nor those who have nothing to do; and they say what they wait for."""
    archive = _archive(cluster, "full", 400)
    dispatcher = cluster.ingest(archive.folder, "--chunk-size", 20, "--look-ahead", 2)
    run = cluster.newest_run(cluster.runs())
    cluster.proxy.delay = 0.3
    cluster.proxy.mode = "slow"
    _reach(cluster, run, 0.1, archive, dispatcher)
    cluster.db.config_set("maxmemory", "1mb")
    time.sleep(4)
    cluster.db.config_set("maxmemory", "0")
    cluster.proxy.mode = "pass"
    _assert_all_in(cluster, run, archive, dispatcher)
    assert any("maxmemory" in line["event"] for worker in cluster.workers for line in worker.log())


@pytest.mark.parametrize(("images", "away_s"), [(400, 5), pytest.param(3000, 20, marks=pytest.mark.chaos)])
def test_qdrant_is_killed_and_comes_back(cluster: Cluster, images: int, away_s: float) -> None:
    server = cluster.server
    archive = _archive(cluster, "qdrant", images)
    dispatcher = cluster.ingest(archive.folder, "--chunk-size", 20)
    run = cluster.newest_run(cluster.runs())
    cluster.proxy.delay = 0.3
    cluster.proxy.mode = "slow"
    _reach(cluster, run, 0.2, archive, dispatcher)
    server.kill()
    time.sleep(away_s)
    assert cluster.settled(run) < images
    server.start()
    cluster.proxy.mode = "pass"
    _assert_all_in(cluster, run, archive, dispatcher)


@pytest.mark.parametrize(("images", "share"), [(800, 0.3), pytest.param(8000, 0.4, marks=pytest.mark.chaos)])
def test_qdrant_is_overloaded_slow_and_cut_off(cluster: Cluster, images: int, share: float) -> None:
    """Each fault for a while, of a random share of all requests; then nothing but 503 for longer than a call is tried."""
    archive = _archive(cluster, "faults", images)
    before = cluster.proxy.counts
    cluster.proxy.delay = 0.05
    dispatcher = cluster.ingest(archive.folder, "--chunk-size", 20)
    run = cluster.newest_run(cluster.runs())
    cluster.proxy.mode = "slow"
    for number, mode in enumerate(FAULTS):
        _reach(cluster, run, number * 0.15, archive, dispatcher)
        cluster.proxy.delay = 2 if mode == "slow" else 0.05
        cluster.proxy.fail_share(share, mode, seed=number)
    _reach(cluster, run, 0.75, archive, dispatcher)
    postponed = len([line for worker in cluster.workers for line in worker.log("chunk postponed")])
    cluster.proxy.fail_share(1, "503")
    wait_for(
        lambda: len([line for worker in cluster.workers for line in worker.log("chunk postponed")]) > postponed,
        60,
        cluster,
    )
    cluster.proxy.fail_share(0, "pass")
    cluster.proxy.mode = "pass"
    _assert_all_in(cluster, run, archive, dispatcher)
    assert all(cluster.proxy.counts[mode] > before[mode] for mode in FAULTS), cluster.proxy.counts


def test_a_message_that_got_lost(cluster: Cluster) -> None:
    """kombu takes a message off the queue and notes it in two steps; a worker killed in between takes it along."""
    archive = _archive(cluster, "lost", 400)
    dispatcher = cluster.ingest(archive.folder, "--chunk-size", 20)
    run = cluster.newest_run(cluster.runs())
    cluster.proxy.delay = 0.3
    cluster.proxy.mode = "slow"
    _reach(cluster, run, 0.1, archive, dispatcher)
    (queue,) = cluster.db.keys("mcip_qdrant.*.lost-short")
    assert cluster.db.rpop(queue) is not None
    assert cluster.db.rpop(queue) is not None
    cluster.proxy.mode = "pass"
    _assert_all_in(cluster, run, archive, dispatcher)
    assert "2 chunk(s) that no worker has were sent again" in dispatcher.err

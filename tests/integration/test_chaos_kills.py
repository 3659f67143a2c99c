"""Killed, frozen and leaving workers, and killed dispatchers: nothing is lost, nothing is there twice, little is done again."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import broken_worker
import pytest
from conftest import Exported
from distributed import Cluster, wait_for
from distributed_checks import assert_ledger, assert_points, make_archive, taken_again, written_again

pytestmark = pytest.mark.timeout(900)
CONCURRENCY = 3


@pytest.mark.parametrize(("images", "kills"), [(1200, 3), pytest.param(5000, 12, marks=pytest.mark.chaos)])
def test_workers_killed_again_and_again(tmp_path: Path, clip: Exported, images: int, kills: int) -> None:
    archive, chunk_size, rng = make_archive(tmp_path / "photos", images), 25, random.Random(images)
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}, timeout_s=6) as cluster:
        pair = cluster.start_workers(2)
        dispatcher = cluster.ingest(archive.folder, "--chunk-size", chunk_size)
        run = cluster.newest_run()
        cluster.proxy.delay = 0.3
        cluster.proxy.mode = "slow"
        lost = 0
        for number in range(kills):
            # One worker is killed in mid-chunk, then the other, and again.
            victim = pair[number % 2]
            wait_for(lambda victim=victim: cluster.in_hand(victim) or not dispatcher.running, 60, cluster)
            assert dispatcher.running, f"the run ended after {number} kills already"
            time.sleep(rng.uniform(0, 0.8))
            victim.kill()
            in_hand = cluster.in_hand(victim)
            assert in_hand <= CONCURRENCY
            lost += in_hand
            pair[number % 2] = cluster.start_workers(1)[0]
        cluster.proxy.mode = "pass"
        dispatcher.end(0)
        cluster.wait_until_quiet()
        assert lost > 0
        assert_points(cluster, archive)
        assert_ledger(cluster, run, archive)
        assert taken_again(cluster) <= lost * chunk_size
        assert written_again(cluster) <= lost * chunk_size


def test_a_dead_workers_chunks_are_taken_over_by_a_running_idle_peer(tmp_path: Path, clip: Exported) -> None:
    archive = make_archive(tmp_path / "photos", 90)
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}, timeout_s=6) as cluster:
        (victim,) = cluster.start_workers(1)
        dispatcher = cluster.ingest(archive.folder, "--chunk-size", 30)
        run = cluster.newest_run()
        cluster.proxy.delay = 60
        cluster.proxy.mode = "slow"
        wait_for(lambda: cluster.in_hand(victim) == 3, 30, cluster)
        received = time.monotonic()
        assert cluster.db.hlen("unacked") == 3, "what a worker has in hand stays the broker's"
        (peer,) = cluster.start_workers(1, env={"MCIP_QDRANT_URL": cluster.qdrant_url})
        assert cluster.in_hand(peer) == 0
        victim.kill()
        cluster.proxy.mode = "pass"
        dispatcher.end(0, within=60)
        waited = time.monotonic() - received
        # With kombu's defaults it would be up to 100 s more; the rest is for a busy machine.
        assert cluster.timeout_s - 1 < waited < cluster.timeout_s + 40
        assert sum(line["images"] for line in peer.log("chunk")) == 90
        assert_ledger(cluster, run, archive)
        assert_points(cluster, archive)


@pytest.mark.chaos
def test_a_chunk_that_lost_its_worker_is_not_blamed_for_an_outage_of_qdrant(tmp_path: Path, clip: Exported) -> None:
    """The attempts after the crash get beyond decoding and end at a Qdrant that takes no writes: nobody died of that."""
    archive = make_archive(tmp_path / "photos", 30)
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}, timeout_s=4) as cluster:
        (victim,) = cluster.start_workers(1)
        dispatcher = cluster.ingest(archive.folder, "--chunk-size", 30)
        run = cluster.newest_run()
        cluster.proxy.read_only = True
        wait_for(lambda: cluster.in_hand(victim) == 1, 30, cluster)
        victim.kill()
        (peer,) = cluster.start_workers(1)
        wait_for(lambda: len(peer.log("chunk postponed")) >= 4 or not dispatcher.running, 90, cluster)
        cluster.proxy.read_only = False
        dispatcher.end(0)
        assert_ledger(cluster, run, archive)
        assert_points(cluster, archive)


def test_a_slow_models_chunk_is_never_handed_out_twice(tmp_path: Path, clip: Exported) -> None:
    """One chunk takes twice the visibility timeout, so it has to be passed on in pieces."""
    archive = make_archive(tmp_path / "photos", 250)
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}, timeout_s=5) as cluster:
        pair = cluster.start_workers(2, command=[broken_worker.__file__], env={"BROKEN": "slow"})
        started = time.monotonic()
        dispatcher = cluster.ingest(archive.folder, "--chunk-size", 250)
        run = cluster.newest_run()
        dispatcher.end(0)
        assert time.monotonic() - started > 1.5 * cluster.timeout_s
        cluster.wait_until_quiet()
        lines = [line for worker in pair for line in worker.log("chunk")]
        assert sum(line["handed_on"] > 0 for line in lines) >= 3
        assert len({line["chunk"] for line in lines}) == len(lines)
        assert not [line for worker in pair for line in worker.log("chunk skipped")]
        assert all(line["seconds"] < cluster.timeout_s for line in lines)
        assert written_again(cluster) == 0
        assert_ledger(cluster, run, archive)
        assert_points(cluster, archive)


def test_sigterm_returns_what_is_in_hand(tmp_path: Path, clip: Exported) -> None:
    archive = make_archive(tmp_path / "photos", 500)
    # So patient that the run would not end in time if the peer had to wait for the timeout.
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}, timeout_s=120) as cluster:
        leaving, peer = cluster.start_workers(2)
        dispatcher = cluster.ingest(archive.folder, "--chunk-size", 25)
        run = cluster.newest_run()
        cluster.proxy.delay = 0.4
        cluster.proxy.mode = "slow"
        wait_for(lambda: cluster.in_hand(leaving) == CONCURRENCY and cluster.settled(run) > 50, 30, cluster)
        before = len(leaving.log("chunk"))
        leaving.send(signal.SIGTERM)
        leaving.end(0, within=20)
        assert cluster.in_hand(leaving) == 0
        assert cluster.ledger(run, "crashes") == {}
        assert dispatcher.running
        cluster.proxy.mode = "pass"
        dispatcher.end(0, within=40)
        cluster.wait_until_quiet()
        assert written_again(cluster) == 0
        assert not peer.log("chunk skipped")
        assert_ledger(cluster, run, archive)
        assert_points(cluster, archive)
        # Each was finished, handed on in part, or returned, as far as it had come.
        assert leaving.log("chunk")[before:] or leaving.log("chunk returned")
        assert not [line for line in leaving.log() if "exception" in line]
        peer.send(signal.SIGTERM)
        peer.end(0, within=20)  # with nothing in hand


def test_a_worker_frozen_past_the_timeout_that_comes_back(tmp_path: Path, clip: Exported) -> None:
    """As a paused virtual machine does: its chunks were done by others meanwhile, and it does them, too."""
    archive = make_archive(tmp_path / "photos", 200)
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}, timeout_s=4) as cluster:
        frozen, peer = cluster.start_workers(2)
        dispatcher = cluster.ingest(archive.folder, "--chunk-size", 20)
        run = cluster.newest_run()
        cluster.proxy.delay = 0.4
        cluster.proxy.mode = "slow"
        wait_for(lambda: cluster.in_hand(frozen) == CONCURRENCY, 30, cluster)
        frozen.send(signal.SIGSTOP)
        before = len(frozen.log("chunk"))
        cluster.proxy.mode = "pass"
        dispatcher.end(0)
        assert_ledger(cluster, run, archive)
        frozen.send(signal.SIGCONT)
        wait_for(lambda: len(frozen.log("chunk")) >= before + CONCURRENCY, 30, cluster)
        cluster.wait_until_quiet()
        assert_ledger(cluster, run, archive)
        assert_points(cluster, archive)
        assert frozen.running
        assert peer.running


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.chaos)])
def test_a_killed_dispatcher_is_resumed(tmp_path: Path, clip: Exported, kills: int) -> None:
    archive, rng = make_archive(tmp_path / "photos", 500 + 100 * kills), random.Random(kills)
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}) as cluster:
        cluster.start_workers(1)
        flags: tuple[object, ...] = ("--chunk-size", 20, "--look-ahead", 3)
        dispatcher = cluster.ingest(archive.folder, *flags)
        run = cluster.newest_run()
        cluster.proxy.delay = 0.3
        cluster.proxy.mode = "slow"
        for _ in range(kills):
            settled = cluster.settled(run)
            wait_for(lambda settled=settled: cluster.settled(run) > settled + 60, 60, cluster)
            time.sleep(rng.uniform(0, 0.3))
            dispatcher.kill()
            assert cluster.ledger(run, "info")["state"] == "dispatching"
            assert not cluster.status(run)["complete"]
            dispatcher = cluster.ingest(archive.folder, *flags, "--resume", run, hurried=True)
        cluster.proxy.mode = "pass"
        assert dispatcher.end(0).json["submitted"] == len(archive.names)
        assert cluster.runs() == [run]
        cluster.wait_until_quiet()
        assert written_again(cluster) == 0
        assert_ledger(cluster, run, archive)
        assert_points(cluster, archive)

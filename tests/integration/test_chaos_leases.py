"""A chunk that stays in somebody's hand: because Redis forgot that it had left it, or because it hangs there. The others go on."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import redis
from broken_worker import MARK
from conftest import Exported
from distributed import Cluster, wait_for
from distributed_checks import assert_ledger, assert_points, make_archive
from services import HOST, free_port

pytestmark = pytest.mark.timeout(300)


def test_redis_loses_its_last_second(tmp_path: Path, clip: Exported) -> None:
    """The worker settled chunks, and Redis does not know of it any more: it names them as in the hand of a worker that lives."""
    archive = make_archive(tmp_path / "photos", 300)
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}, timeout_s=5) as cluster:
        (worker,) = cluster.start_workers(1)
        cluster.proxy.delay = 0.2
        cluster.proxy.mode = "slow"
        dispatcher = cluster.ingest(archive.folder, "--chunk-size", 10, "--look-ahead", 40)
        run = cluster.newest_run()
        wait_for(lambda: cluster.ledger(run, "info").get("state") == "dispatched", 60, cluster)
        wait_for(lambda: cluster.settled(run) >= 50 and cluster.in_hand(worker) == 3, 60, cluster)
        cluster.redis.copy(tmp_path / "copy")
        before = cluster.settled(run)
        wait_for(lambda: cluster.settled(run) >= before + 40, 60, cluster)
        cluster.redis.go_back(tmp_path / "copy")
        cluster.proxy.mode = "pass"
        assert dispatcher.end(0).json["embedded"] == 300
        assert_ledger(cluster, run, archive)
        assert_points(cluster, archive)
        assert cluster.ledger(run, "crashes") == {}, "nobody died"


def _health(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code


def test_an_image_that_hangs_holds_its_chunk_and_nothing_else(tmp_path: Path, clip: Exported) -> None:
    """Its message comes round again and again; nobody waits for it for long, and only the worker that hangs turns red."""
    archive = make_archive(tmp_path / "photos", 300)
    bad = archive.folder / archive.names[20]
    content = bad.read_bytes()
    bad.unlink()  # it is a link: its twins stay as they are
    bad.write_bytes(content + MARK)
    hanging, healthy = free_port(), free_port()
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}, timeout_s=4) as cluster:
        file = Path(__file__).parents[1] / "broken_worker.py"
        (stuck,) = cluster.start_workers(
            1, "--concurrency", 1, "--metrics-port", hanging, "--stall", 8, command=(file,), env={"BROKEN": "hang"}
        )
        dispatcher = cluster.ingest(archive.folder, "--chunk-size", 5)
        run = cluster.newest_run()
        wait_for(lambda: cluster.settled(run) >= 20, 60, cluster)
        # One thread, fewer than the hanging chunk would take in the time.
        (other,) = cluster.start_workers(1, "--concurrency", 1, "--metrics-port", healthy, "--stall", 8)
        wait_for(lambda: cluster.settled(run) == 295, 120, cluster)
        wait_for(lambda: _health(hanging) == 503, 60, stuck)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert _health(healthy) == 200, "it has nothing to do"
            time.sleep(0.3)
        assert cluster.in_hand(stuck) == 1
        assert other.log("chunk returned")[-1]["why"] == "another attempt has it in hand"
        # The next run is not held up either, although its only worker has one thread.
        assert cluster.ingest(archive.folder, "--chunk-size", 5).end(0).json["unchanged"] == 295
        stuck.kill()
        assert dispatcher.end(0).json["submitted"] == 300


def test_a_worker_whose_password_is_refused_in_mid_run_ends(tmp_path: Path, clip: Exported) -> None:
    """It could not renew its leases any more; and the same command would be refused again."""
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": tmp_path}) as cluster:
        (worker,) = cluster.start_workers(1)
        cluster.db.config_set("requirepass", "another")
        with redis.Redis.from_url(cluster.redis.url, password="another") as other:  # noqa: S106
            other.client_kill_filter(_type="normal", skipme=True)
            said = worker.end(4, within=60)
            assert "refused the password" in said.err
            other.config_set("requirepass", "")

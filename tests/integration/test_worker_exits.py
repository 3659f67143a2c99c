"""How a worker ends when it is told to: at any moment, and with the exit code that supervisors are promised."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Exported
from distributed import Cluster, wait_for
from distributed_checks import make_archive

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, clip: Exported) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("exits")
    archive = make_archive(home / "photos", 300)
    with Cluster(home / "cluster", clip.folder, {"photos": archive.folder}) as running:
        yield running


def test_workers_that_are_told_to_stop(cluster: Cluster) -> None:
    """Busy with chunks; each hands back what is not finished."""
    names = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGINT twice")
    workers = cluster.start_workers(len(names), "--concurrency", 2)
    cluster.proxy.delay = 0.5
    cluster.proxy.mode = "slow"
    dispatcher = cluster.ingest(Path(cluster.roots["photos"]), "--chunk-size", 5)
    cluster.newest_run()
    for name, worker in zip(names, workers, strict=True):
        wait_for(lambda worker=worker: cluster.in_hand(worker), 60, worker)
        number, *again = name.split()
        worker.send(signal.Signals[number])
        if again:
            time.sleep(0.1)
            worker.send(signal.Signals[number])
    for name, worker in zip(names, workers, strict=True):
        said = worker.end(0 if name == "SIGTERM" else 130, within=60)
        assert "NotImplementedError" not in said.err
    # And one that is still checking its model.
    before = {client["id"] for client in cluster.db.client_list()}
    starting = cluster.program("worker")
    wait_for(lambda: {client["id"] for client in cluster.db.client_list()} - before, 60, starting)
    starting.send(signal.SIGTERM)
    starting.end(0, within=60)
    # Redis away: nothing can be handed back, and nobody waits for it.
    (last,) = cluster.start_workers(1)
    wait_for(lambda: cluster.in_hand(last), 60, last)
    cluster.redis.kill()
    time.sleep(1)
    last.send(signal.SIGTERM)
    last.end(0, within=60)
    cluster.redis.start()
    cluster.proxy.mode = "pass"
    dispatcher.kill()

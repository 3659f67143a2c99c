"""Several runs, dispatchers and models at once, and a collection that is replaced under a running worker."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from conftest import Exported
from distributed import Cluster, wait_for
from distributed_checks import assert_ledger, assert_points, make_archive, taken_again, written_again

from mcip_qdrant.collection import ensure_collection
from mcip_qdrant.store import Store

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("images", [600, pytest.param(4000, marks=pytest.mark.chaos)])
def test_two_runs_over_one_archive_and_one_run_dispatched_twice(tmp_path: Path, clip: Exported, images: int) -> None:
    archive = make_archive(tmp_path / "photos", images)
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}) as cluster:
        cluster.start_workers(2)
        flags = ("--chunk-size", 20, "--look-ahead", 10)
        dispatchers = [cluster.ingest(archive.folder, *flags) for _ in range(2)]
        wait_for(lambda: len(cluster.runs()) == 2, 30, cluster)
        cluster.proxy.delay = 1
        cluster.proxy.mode = "slow"
        first, second = cluster.runs()
        again = cluster.ingest(archive.folder, *flags, "--resume", first, hurried=True)
        wait_for(lambda: again.err.startswith(f"run {first}"), 30, again)
        assert all(dispatcher.running for dispatcher in dispatchers), "the resumed run was over already"
        cluster.proxy.mode = "pass"
        for dispatcher in [*dispatchers, again]:
            dispatcher.end(0)
        cluster.wait_until_quiet()
        assert_points(cluster, archive)
        said = [assert_ledger(cluster, run, archive, unchanged=None) for run in (first, second)]
        # Which run did an image first is chance; that each was done by one of them, or by both at the same moment, is not.
        assert sum(run["embedded"] for run in said) == images + written_again(cluster)
        assert taken_again(cluster) == images


def test_a_worker_with_another_model_is_refused_before_it_writes(
    tmp_path: Path, clip: Exported, other_clip: Exported
) -> None:
    archive = make_archive(tmp_path / "photos", 20)
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}) as cluster:
        dispatcher = cluster.ingest(archive.folder)
        cluster.newest_run()
        stranger = cluster.start_workers(1, "--bundle", other_clip.folder, ready=False)[0]
        # One that is told of another collection may join; its queue is another, so it never sees the chunk.
        cluster.start_workers(1, "--bundle", other_clip.folder, "--collection", "elsewhere")
        said = stranger.end(4)
        assert len(said.err.splitlines()) == 1
        for exported in (clip, other_clip):
            assert exported.bundle.manifest.model in said.err
            assert exported.bundle.manifest.space_id[:12] in said.err
        # The dispatcher names what is missing.
        wait_for(lambda: "no worker is running for tiny-clip" in dispatcher.err, 15, dispatcher)
        assert "--source-root photos=" in dispatcher.err
        assert not cluster.proxy.upserts
        cluster.start_workers(1)
        dispatcher.end(0)
        assert_points(cluster, archive)


def test_a_collection_replaced_under_a_running_worker(tmp_path: Path, clip: Exported, other_clip: Exported) -> None:
    archive = make_archive(tmp_path / "photos", 300)
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}) as cluster:
        (worker,) = cluster.start_workers(1)
        dispatcher = cluster.ingest(archive.folder, "--chunk-size", 20)
        run = cluster.newest_run()
        cluster.proxy.delay = 0.3
        cluster.proxy.mode = "slow"
        wait_for(lambda: cluster.settled(run) >= 40, 60, cluster)
        cluster.proxy.mode = "refuse"
        wait_for(lambda: worker.log("chunk postponed"), 60, cluster)
        settled = cluster.settled(run)
        cluster.client.delete_collection(cluster.collection)
        ensure_collection(Store.of(cluster.client), cluster.collection, other_clip.bundle.manifest, {})
        cluster.proxy.mode = "pass"
        worker.end(4, within=60)
        assert cluster.client.count(cluster.collection).count == 0
        # Its other chunks may be returned after this line.
        (ends,) = [line for line in worker.log() if line["event"].startswith("this worker ends: collection")]
        assert "other-clip" in ends["event"]
        assert "tiny-clip" in ends["event"]
        # Nothing of the run is lost: its chunks went back, no image was blamed.
        assert cluster.settled(run) == settled
        assert cluster.ledger(run, "failures") == {}
        assert dispatcher.running
        dispatcher.send(signal.SIGTERM)
        dispatcher.end(130)

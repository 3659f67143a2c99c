"""Images that kill whoever decodes them, and pictures that kill the model: a few worker deaths, one dead letter, no neighbour lost."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import broken_worker
import pytest
from conftest import Exported
from distributed import Cluster, Program
from distributed_checks import Archive, assert_ledger, assert_points, make_archive
from PIL import Image

pytestmark = pytest.mark.timeout(900)
OOM_BYTES = 1_500_000_000


def _resident(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except OSError:  # it has just ended
        return 0
    return int(pages) * resource.getpagesize()


def _supervise(cluster: Cluster, dispatcher: Program, *flags: object, how: str, deaths_allowed: int) -> int:
    """Keep one worker running, as a service manager does, and play the kernel's OOM killer; returns how often it died."""
    command, deaths = [Path(broken_worker.__file__)], 0
    worker = cluster.start_workers(1, *flags, command=command, env={"BROKEN": how})[0]
    while dispatcher.running:
        if _resident(worker.pid) > OOM_BYTES:
            worker.kill()
        if not worker.running:
            deaths += 1
            assert deaths <= deaths_allowed, cluster
            worker = cluster.start_workers(1, *flags, command=command, env={"BROKEN": how}, ready=False)[0]
        time.sleep(0.01)
    return deaths


def _with_marked(archive: Archive, number: int, reason: str) -> Archive:
    """One image is another file, which is a fine JPEG for everybody else."""
    path = archive.folder / archive.names[number]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data + broken_worker.MARK)
    return replace(archive, bad={**archive.bad, archive.names[number]: reason})


@pytest.mark.parametrize(("how", "reason"), [("abort", "crashed_decoder"), ("eat", "out_of_memory")])
def test_an_image_that_kills_its_decoder(tmp_path: Path, clip: Exported, how: str, reason: str) -> None:
    archive = _with_marked(make_archive(tmp_path / "photos", 512), 300, reason)
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}, timeout_s=5) as cluster:
        dispatcher = cluster.ingest(archive.folder)
        deaths = _supervise(cluster, dispatcher, "--memory-limit-mb", 512, how=how, deaths_allowed=2)
        said = dispatcher.end(3).json
        assert 1 <= deaths <= 2
        assert (said["embedded"], said["failed"]) == (511, 1)
        assert_ledger(cluster, said["run_id"], archive)
        assert_points(cluster, archive)


@pytest.mark.chaos
def test_a_picture_that_kills_the_model_costs_its_chunk_alone(tmp_path: Path, clip: Exported) -> None:
    archive = make_archive(tmp_path / "photos", 200)
    black = archive.folder / archive.names[77]
    black.unlink()
    Image.new("RGB", (64, 64)).save(black)
    archive = replace(archive, bad=dict.fromkeys(archive.names[60:80], "crashed_worker"))
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}, timeout_s=4) as cluster:
        dispatcher = cluster.ingest(archive.folder, "--chunk-size", 20)
        deaths = _supervise(cluster, dispatcher, "--batch-size", 4, how="encoder", deaths_allowed=4)
        said = dispatcher.end(3).json
        assert deaths == 4
        assert_ledger(cluster, said["run_id"], archive)
        written = cluster.points()
        # What the chunk's earlier attempts had written stays; it is a dead letter all the same, and `retry` says which is right.
        assert set(written) >= {archive.point_id(name) for name in archive.good}
        assert archive.point_id(archive.names[77]) not in written
        black.unlink()
        os.link(archive.pictures[77 % len(archive.pictures)], black)
        cluster.start_workers(1)
        cluster.run("retry", said["run_id"], expect=0)
        mended = replace(archive, bad={})
        assert_ledger(cluster, said["run_id"], mended)
        assert_points(cluster, mended)

"""A worker's memory does not grow with the number of images it has seen."""

from __future__ import annotations

import resource
import statistics
import time
from pathlib import Path

import pytest
from conftest import Exported
from distributed import Cluster
from distributed_checks import assert_ledger, make_archive

pytestmark = pytest.mark.timeout(900)


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


IMAGES, GROWTH = 50_000, 1.1


@pytest.mark.chaos
def test_a_workers_memory_is_flat(tmp_path: Path, clip: Exported) -> None:
    archive = make_archive(tmp_path / "photos", IMAGES)
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}, timeout_s=120) as cluster:
        (worker,) = cluster.start_workers(1)
        dispatcher = cluster.ingest(archive.folder, "--chunk-size", 100)
        run = cluster.newest_run()
        seen: list[tuple[int, float]] = []
        while dispatcher.running:
            seen.append((cluster.settled(run), _resident_mb(worker.pid)))
            time.sleep(0.1)
        dispatcher.end(0)
        assert_ledger(cluster, run, archive)
        # All threads have worked and all buffers have been used once by then.
        early = [mb for settled, mb in seen if IMAGES * 0.2 <= settled < IMAGES * 0.4]
        late = [mb for settled, mb in seen if settled >= IMAGES * 0.8]
        assert min(len(early), len(late)) >= 5, seen
        assert statistics.median(late) < GROWTH * statistics.median(early), seen

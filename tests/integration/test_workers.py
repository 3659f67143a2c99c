"""The ordinary road: ingest --broker, status, failures, retry, cancel, resume, detach, and Celery's own program."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Exported
from distributed import Cluster, wait_for
from distributed_checks import Archive, assert_ledger, assert_points, failures, make_archive
from PIL import Image

pytestmark = pytest.mark.timeout(300)
COUNT = 120


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def archive(home: Path) -> Archive:
    return make_archive(home / "photos", COUNT)


@pytest.fixture(scope="module")
def shared(home: Path, archive: Archive, clip: Exported) -> Iterator[Cluster]:
    """Two sources and one worker, started as Celery users do, in a folder that has nothing to do with the project."""
    (home / "late").mkdir()
    roots = {"photos": archive.folder, "late": home / "late"}
    with Cluster(home / "cluster", clip.folder, roots) as cluster:
        celery = ["-m", "celery", "-A", "mcip_qdrant.workers.app"]
        # Celery takes `prefork` for its own default, and then what the app says: threads.
        cluster.start_workers(1, "--pool", "prefork", command=celery, env={"PYTHONPATH": ""})
        wait_for(lambda: "(thread)" in cluster.workers[0].out, 20, cluster.workers[0])
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """The shared cluster, with a collection for each test."""
    shared.forget_points()
    return shared


def test_an_ingest_by_workers(cluster: Cluster, archive: Archive) -> None:
    done = cluster.ingest(archive.folder, "--chunk-size", 50).end(0)
    run = done.json["run_id"]
    assert {name: done.json[name] for name in ("submitted", "embedded", "unchanged", "failed", "pending")} == {
        "submitted": COUNT,
        "embedded": COUNT,
        "unchanged": 0,
        "failed": 0,
        "pending": 0,
    }
    assert done.err.startswith(f"run {run}\n")
    assert f"{COUNT}/{COUNT}" in done.err
    assert f"embedded {COUNT}, unchanged 0, failed 0" in done.err
    assert_points(cluster, archive)
    assert_ledger(cluster, run, archive)
    payloads = [point.payload or {} for point in cluster.points().values()]
    assert {payload["run_id"] for payload in payloads} == {run}
    assert all(payload["uri"] == f"file://{archive.folder.parent}/{payload['key']}" for payload in payloads)

    # Nothing to do the second time; then one image changes.
    again = cluster.run("ingest", archive.folder)
    assert f"{COUNT} submitted = 0 embedded + {COUNT} unchanged + 0 failed" in again.out
    assert {(point.payload or {})["run_id"] for point in cluster.points().values()} == {run}
    touched = archive.folder / archive.names[3]
    content = touched.read_bytes()
    touched.unlink()  # it was one file with others of the same picture
    touched.write_bytes(content)
    changed = cluster.ingest(archive.folder).end(0).json
    assert (changed["embedded"], changed["unchanged"]) == (1, COUNT - 1)
    changed = cluster.ingest(archive.folder, "--checksum").end(0).json
    assert (changed["embedded"], changed["unchanged"]) == (0, COUNT)


def test_columns_and_a_list(cluster: Cluster, archive: Archive) -> None:
    (cluster.home / "tags.csv").write_text(f"path,year,tag\n{archive.names[0]},2019,sea\n{archive.names[1]},,land\n")
    (cluster.home / "list.txt").write_text("\n".join(archive.names[:30]))
    flags = ("--list", cluster.home / "list.txt", "--columns", cluster.home / "tags.csv", "--index", "year:integer")
    assert cluster.ingest(archive.folder, *flags).end(0).json["embedded"] == 30
    points = cluster.points()
    payloads = [points[archive.point_id(name)].payload or {} for name in archive.names[:2]]
    assert [(payload.get("year"), payload.get("tag")) for payload in payloads] == [(2019, "sea"), (None, "land")]
    assert len(points) == 30


def test_bad_files_are_listed_mended_and_retried(cluster: Cluster, archive: Archive) -> None:
    broken, gone = archive.folder / "000/broken.jpg", archive.folder / "000/empty.jpg"
    broken.write_bytes(b"no picture at all")
    gone.touch()
    done = cluster.ingest(archive.folder, "--chunk-size", 50).end(3).json
    run = done["run_id"]
    assert (done["submitted"], done["embedded"], done["failed"]) == (COUNT + 2, COUNT, 2)
    wanted = {"photos/000/broken.jpg": "not_an_image", "photos/000/empty.jpg": "empty"}
    assert failures(cluster, run) == wanted
    listed = cluster.run("failures", run, expect=3).out.splitlines()
    assert sorted(line.split("\t")[:2] for line in listed) == sorted(map(list, wanted.items()))
    rows = [json.loads(line) for line in (cluster.home / "failures.jsonl").read_text().splitlines()]
    assert {row["key"]: row["reason"] for row in rows} == wanted

    Image.new("RGB", (20, 30), "red").save(broken)
    retried = cluster.run("retry", run, "--json", expect=3).json
    assert (retried["replayed"], retried["embedded"], retried["failed"]) == (2, COUNT + 1, 1)
    Image.new("RGB", (20, 30), "blue").save(gone)
    retried = cluster.run("retry", run, "--json").json
    assert (retried["replayed"], retried["embedded"], retried["failed"]) == (1, COUNT + 2, 0)
    assert cluster.run("retry", run, "--json").json["replayed"] == 0
    assert failures(cluster, run) == {}
    assert len(cluster.points()) == COUNT + 2
    broken.unlink()
    gone.unlink()


def test_cancel_and_resume(cluster: Cluster, archive: Archive) -> None:
    cluster.proxy.delay = 0.3
    dispatcher = cluster.ingest(archive.folder, "--chunk-size", 5, "--look-ahead", 10)
    run = cluster.newest_run(cluster.runs())
    cluster.proxy.mode = "slow"
    wait_for(lambda: cluster.settled(run) > 10, 30, cluster)
    assert "is cancelled" in cluster.run("cancel", run).out
    stopped = dispatcher.end(130)
    assert f"--resume {run}" in stopped.err
    assert cluster.run("status", run).out.splitlines()[1].startswith("cancelled")
    cluster.proxy.mode = "pass"
    cluster.wait_until_quiet()
    before = cluster.points()
    assert len(before) < COUNT
    # A run is continued with what it was started with, or not at all.
    refused = cluster.run("ingest", archive.folder, "--resume", run, "--checksum", expect=1)
    assert "checksum is False, not True" in refused.err
    resumed = cluster.ingest(archive.folder, "--chunk-size", 5, "--resume", run).end(0).json
    assert resumed["run_id"] == run
    assert_ledger(cluster, run, archive)
    assert_points(cluster, archive)
    assert all(cluster.points()[point].payload == record.payload for point, record in before.items())


def test_what_is_refused_before_anything_is_done(cluster: Cluster, archive: Archive) -> None:
    """A file of failures that cannot be written, and a run whose points are gone."""
    known = cluster.runs()
    refused = cluster.run("ingest", archive.folder, "--failures", "no-such-folder/failures.jsonl", expect=None)
    assert refused.code
    assert "cannot be written" in refused.err
    assert cluster.runs() == known
    run = cluster.ingest(archive.folder).end(0).json["run_id"]
    cluster.client.delete_collection(cluster.collection)
    lost = cluster.run("ingest", archive.folder, "--resume", run, expect=1)
    assert "does not exist any more" in lost.err
    assert not cluster.client.collection_exists(cluster.collection)


def test_a_detached_run_completes(cluster: Cluster, archive: Archive) -> None:
    started = cluster.run("ingest", "--chunk-size", 20, "--detach", "--", archive.folder)
    run = started.out.strip()
    assert started.out == f"{run}\n"
    assert run in cluster.runs()
    assert f"mcip-qdrant-{run}.log" in started.err
    waited = cluster.run("status", run, "--wait")
    assert f"{COUNT} submitted = {COUNT} embedded + 0 unchanged + 0 failed" in waited.out
    assert "complete; tiny-clip" in waited.out
    assert_points(cluster, archive)
    log = cluster.home / f"mcip-qdrant-{run}.log"
    wait_for(lambda: f"run {run}: {COUNT} submitted" in log.read_text(), 20, log)


def test_an_interrupted_dispatcher_leaves_the_rest_to_resume(cluster: Cluster, archive: Archive) -> None:
    known = cluster.runs()
    cluster.proxy.delay = 0.3
    dispatcher = cluster.ingest(archive.folder, "--chunk-size", 5, "--look-ahead", 1)
    run = cluster.newest_run(known)
    cluster.proxy.mode = "slow"
    wait_for(lambda: cluster.settled(run) > 10, 30, cluster)
    dispatcher.send(signal.SIGINT)
    said = dispatcher.end(130)
    cluster.proxy.mode = "pass"
    assert said.json["submitted"] < COUNT
    assert f"--resume {run}" in said.err
    assert cluster.ingest(archive.folder, "--chunk-size", 5, "--resume", run).end(0).json["submitted"] == COUNT
    assert_ledger(cluster, run, archive)
    assert_points(cluster, archive)


def test_status_lists_runs_and_workers(cluster: Cluster, archive: Archive) -> None:
    run = cluster.ingest(archive.folder).end(0).json["run_id"]
    said = cluster.run("status", "--json").json
    assert said["runs"][0]["run_id"] == run
    assert said["runs"][0]["complete"] is True
    assert [run["run_id"] for run in said["runs"]] == cluster.runs()
    (worker,) = said["workers"].values()
    assert (worker["model"], worker["sources"]) == ("tiny-clip", ["late", "photos"])
    lines = cluster.run("status").out.splitlines()
    assert lines[0].startswith(f"{run}  complete")
    assert f"{COUNT} of {COUNT} images, 0 failed  photos -> {cluster.collection}" in lines[0]
    assert lines[-1].startswith("worker ")
    unknown = [cluster.program(command, "no-such-run") for command in ("status", "failures", "retry", "cancel")]
    assert all("list them with: mcip-qdrant status" in program.end(1).err for program in unknown)


def test_what_cannot_be_combined_with_a_broker(cluster: Cluster, archive: Archive) -> None:
    refusals = {
        ("--prune",): (2, "--prune cannot be combined with --broker yet"),
        ("--batch-size", "4"): (2, "options of `mcip-qdrant worker`"),
        ("--list", "-", "--detach"): (2, "--detach cannot read the list from stdin"),
        ("--qdrant", "folder"): (4, "--broker needs a Qdrant server"),
    }
    before = cluster.runs()
    started = {flags: cluster.program("ingest", archive.folder, *flags) for flags in refusals}
    for flags, (code, words) in refusals.items():
        assert words in started[flags].end(code).err
    assert cluster.runs() == before


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes")
def test_names_that_are_not_utf8(cluster: Cluster) -> None:
    folder = cluster.roots["late"]
    names = [b"caf\xe9 \xff.jpg", "größe %.jpg".encode(), b"new\nline.jpg"]
    for name in names:
        with open(os.fsencode(folder) + b"/" + name, "wb") as stream:  # noqa: PTH123
            Image.new("RGB", (9, 9), "green").save(stream, "JPEG")
    done = cluster.ingest(folder).end(0).json
    assert done["embedded"] == len(names)
    keys = {(point.payload or {})["key"] for point in cluster.points().values()}
    assert keys == {"late/caf%E9 %FF.jpg", "late/größe %25.jpg", "late/new\nline.jpg"}

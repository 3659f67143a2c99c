"""Workers, Redis and Qdrant on this one machine: images/s as a share of bare ONNX Runtime, and where the CPU time goes.

Real processes: `mcip-qdrant worker`, redis-server with its append-only file, and the test suite's Qdrant server (the real engine, as
qdrant-edge-py, behind an HTTP server in Python; a Qdrant server proper is cheaper). All of them share this machine's CPUs, so what
Redis and Qdrant take is missing for the model; on a larger machine it is not.

Bare ONNX Runtime encodes pixels that are ready in memory, batch 16, in the same rounds. "CPU" is user + system time of a kind of
process in a run, divided by its images; the overhead is what worker, dispatcher and
Redis took beyond decoding, preprocessing and bare ONNX Runtime on the same images.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from _harness import Fact, Peer, Row, Script, report, say
from _models import Model, photos, tiny, vit_b_32
from services import qdrant_server, redis_server

from mcip_qdrant.bundle import Bundle
from mcip_qdrant.collection import ensure_collection
from mcip_qdrant.decode import DecodeLimits
from mcip_qdrant.ingest import new_run_id, timestamp
from mcip_qdrant.source import FolderSource, ListingReport
from mcip_qdrant.store import open_store
from mcip_qdrant.workers.broker import broker_settings, make_celery
from mcip_qdrant.workers.dispatch import Dispatcher, Watch, open_run
from mcip_qdrant.workers.ledger import Ledger
from mcip_qdrant.workers.message import Chunk
from mcip_qdrant.workers.queue import Queues

_TICKS = os.sysconf("SC_CLK_TCK")
OVERHEAD_MS = 1.0


def cpu_seconds(process: int) -> float:
    """User and system time of a process and of the children that it has waited for."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS


class Site:
    """Redis, Qdrant and workers for one model."""

    def __init__(self, stack: ExitStack, model: Model, folder: Path, archive: Path) -> None:
        self.bundle, self.archive, self.folder = Bundle.open(model.bundle), archive, folder
        self.redis = stack.enter_context(redis_server(folder / "redis"))
        self.qdrant = stack.enter_context(qdrant_server(folder / "qdrant"))
        self.settings = broker_settings(self.redis.url)
        self.ledger = Ledger(self.settings)
        self.store = open_store(self.qdrant.url)
        self.queues = Queues(make_celery(self.settings), self.settings, self.ledger.redis)
        self.workers: list[subprocess.Popen[bytes]] = []

    def staff(self, number: int) -> None:
        """Have so many workers, ready."""
        while len(self.workers) < number:
            command = [sys.executable, "-m", "mcip_qdrant", "worker", "--source-root", f"archive={self.archive}"]
            command += ["--bundle", str(self.bundle.directory), "--qdrant", self.qdrant.url, "--broker", self.redis.url]
            with (self.folder / f"worker-{len(self.workers)}.log").open("wb") as log:
                self.workers.append(subprocess.Popen([*command, "--device", "cpu"], stderr=log, stdout=log))
        while len(self.ledger.workers()) < number:
            if any(worker.poll() is not None for worker in self.workers):
                raise SystemExit(f"a worker ended: see {self.folder}")
            time.sleep(0.2)
        time.sleep(2)

    def round(self, chunk_size: int) -> dict[str, float]:
        """Ingest the archive into a new collection: seconds, and CPU milliseconds an image by kind of process."""
        collection = new_run_id()
        ensure_collection(self.store, collection, self.bundle.manifest, {})
        listed = list(FolderSource("archive", self.archive)(ListingReport()))
        limits = DecodeLimits()
        kinds = {
            "worker": [worker.pid for worker in self.workers],
            "dispatcher": [os.getpid()],
            "Redis": [self.redis.pid],
            "Qdrant": [self.qdrant.pid],
        }
        before = {kind: sum(map(cpu_seconds, ids)) for kind, ids in kinds.items()}
        sample = Chunk(
            *(new_run_id(), collection, self.bundle.manifest.space_id, "archive", ("-",), timestamp()),
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
        )
        open_run(self.ledger, sample, self.bundle.manifest.model, str(self.archive))
        start = time.perf_counter()
        dispatcher = Dispatcher(self.ledger, self.queues, sample.run, sample, Watch())
        dispatcher.feed(listed, chunk_size)
        counts = dispatcher.wait()
        seconds = time.perf_counter() - start
        if counts.embedded != len(listed):
            raise SystemExit(f"{counts} for {len(listed)} images: see {self.folder}")
        images = len(listed)
        spent = {kind: 1000 * (sum(map(cpu_seconds, ids)) - before[kind]) / images for kind, ids in kinds.items()}
        self.store.call(lambda client: client.delete_collection(collection))
        return {"seconds": seconds, **spent}

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            worker.wait(60)


def measure(
    name: str, model: Model, archive: Path, options: Any, sizes: Sequence[int], target: float | None
) -> list[Row | Fact]:
    """All rows of one model."""
    count = len(list(archive.glob("*.jpg")))
    config = {"bundle": str(model.bundle), "photos": str(archive)}
    rows: list[Row | Fact] = []
    with tempfile.TemporaryDirectory(dir=options.work) as folder, ExitStack() as stack:
        site = Site(stack, model, Path(folder), archive)
        stack.callback(site.close)
        for staff in options.workers:
            site.staff(staff)
            bare = Peer("bare", "_ingest_peers.py", config)
            found: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
            reference: list[dict[str, float]] = []
            for number in range(options.rounds + 1):
                for size in sizes if number % 2 else reversed(sizes):
                    figures = site.round(size)
                    if number:
                        found[size].append(figures)
                figures = bare.round()
                if number:
                    reference.append(figures)
                say(f"{name}, {staff} worker(s): round {number} of {options.rounds}" if number else "warm-up done")
            bare.close()
            for size in sizes:
                rows += _rows(name, staff, size, count, found[size], reference, target)
    return rows


def _rows(
    name: str,
    staff: int,
    size: int,
    count: int,
    found: Sequence[dict[str, float]],
    reference: Sequence[dict[str, float]],
    target: float | None,
) -> list[Row | Fact]:
    what = f"{name}, {count} JPEGs of 640x480, {staff} worker(s), chunks of {size}"
    pairs = list(zip(found, reference, strict=True))
    share = [bare["seconds"] / ours["seconds"] for ours, bare in pairs]
    model, prepare = (
        statistics.median(1000 * bare[key] / count for bare in reference)
        for key in ("cpu_seconds", "prepare_cpu_seconds")
    )
    spent = {
        kind: statistics.median(one[kind] for one in found) for kind in ("worker", "dispatcher", "Redis", "Qdrant")
    }
    note = ", ".join(f"{kind} {ms:.2f}" for kind, ms in spent.items())
    rows: list[Row | Fact] = [
        Row(what, "bare ONNX Runtime on ready tensors", target, share, f"CPU ms an image: {note}")
    ]
    if target is None:
        carried = spent["worker"] - model - prepare + spent["dispatcher"] + spent["Redis"]
        rows.append(
            Fact(
                f"{what}: CPU beside decoding and model, Qdrant's own left out",
                "an image",
                f"at most {OVERHEAD_MS:g} ms",
                f"{carried:.2f} ms",
                carried <= OVERHEAD_MS,
                f"decode and preprocess {prepare:.2f} ms, model {model:.2f} ms; worker {spent['worker']:.2f} ms",
            )
        )
    return rows


def main() -> None:
    """Measure and print."""
    script = Script(__doc__ or "", rounds=3)
    script.parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    script.parser.add_argument("--models", nargs="+", choices=("tiny", "vit-b-32"), default=["tiny", "vit-b-32"])
    options = script.parse()
    rows: list[Row | Fact] = []
    if "tiny" in options.models:
        archive = photos(options.work, 2048, 640, 480)
        rows += measure("tiny tower", tiny(options.work), archive, options, (64, 128, 256, 512), None)
    if "vit-b-32" in options.models:
        archive = photos(options.work, 512, 640, 480)
        rows += measure("ViT-B/32", vit_b_32(options.work), archive, options, (64, 256), 0.92)
    report(rows, as_json=options.json)


if __name__ == "__main__":
    main()

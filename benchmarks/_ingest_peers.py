"""Peers that bring a folder of JPEGs into embedded Qdrant: ours, fastembed; and bare ONNX Runtime on ready pixels.

All run with as many threads as this process has CPUs, on the same weights, in processes of their own. What is timed is
one whole load into a new, empty collection in a new folder on disk; loading the model and importing are not timed.

Subnormal numbers can slow a CPU tenfold, and random weights may bring them. Our `Session` turns them into zero, and so do
the others here: the bare session by the same option; fastembed has no such option, so this script gives it a
`SessionOptions` that has it set (also in the processes that its `parallel` starts, which import this file as their main
module). With the weights of `_models.py` the setting made no difference to bare ONNX Runtime when that was tried.

Not a script to run by hand: `ingest_small.py` and `ingest_large.py` start it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

BATCH = 16
COLLECTION = "images"
_LEAST_BATCHES = 12

Round = Callable[[], tuple[dict[str, Any], Any]]


class _SessionOptions(onnxruntime.SessionOptions):
    def __init__(self) -> None:
        super().__init__()
        self.add_session_config_entry("session.set_denormal_as_zero", "1")


if __name__ == "__mp_main__" or (__name__ == "__main__" and sys.argv[1].startswith("fastembed")):
    onnxruntime.SessionOptions = _SessionOptions


def photo_paths(config: Mapping[str, Any]) -> list[Path]:
    """Photos in the order in which every peer reports its vectors."""
    return sorted(Path(config["photos"]).glob("*.jpg"))


def bare(config: Mapping[str, Any]) -> Round:
    """ONNX Runtime alone: the bundle's own graph, its default spinning, pixels that are ready in memory."""
    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.cpus import available_cpus
    from mcip_qdrant.decode import decode
    from mcip_qdrant.preprocess import preprocess

    bundle = Bundle.open(config["bundle"])
    how = bundle.manifest.preprocess
    before = time.process_time()
    pixels = np.stack([preprocess(decode(path.read_bytes()).rgb, how) for path in photo_paths(config)])
    prepare = time.process_time() - before
    options = _SessionOptions()
    options.intra_op_num_threads = available_cpus()
    graph = bundle.directory / bundle.graph("visual", "fp32").file
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def work() -> tuple[dict[str, Any], Any]:
        start, cpu = time.perf_counter(), time.process_time()
        parts = [session.run(None, {name: pixels[at : at + BATCH]})[0] for at in range(0, len(pixels), BATCH)]
        figures = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "prepare_cpu_seconds": prepare,
        }
        return figures, np.concatenate(parts)

    return work


def ours(config: Mapping[str, Any]) -> Round:
    """`mcip_qdrant.ingest.ingest`, as the command line calls it. Variant: `exact` or `scaled`."""
    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.ingest import IngestOptions, ingest, open_encoder
    from mcip_qdrant.session import Device
    from mcip_qdrant.source import FolderSource
    from mcip_qdrant.store import open_store

    bundle = Bundle.open(config["bundle"])
    encoder = open_encoder(bundle, Device.parse("cpu"), "fp32")
    folder, count = Path(config["photos"]), len(photo_paths(config))
    options = IngestOptions(collection=COLLECTION, decode=config["variant"])

    def work() -> tuple[dict[str, Any], Any]:
        with _new_folder() as place:
            start = time.perf_counter()
            store = open_store(place)
            result = ingest(FolderSource("photos", folder), bundle, encoder, store, options)
            seconds = time.perf_counter() - start
            if (result.report.embedded, result.points) != (count, count):
                raise SystemExit(f"{result.points} points for {count} photos: {result.report}")
            found = _vectors(store.client, lambda record: record.payload["key"])
            store.close()
        stages = {name: round(spent, 3) for name, spent in result.report.seconds.items()}
        return {"seconds": seconds, "stages": stages}, found

    return work


def fastembed(config: Mapping[str, Any]) -> Round:
    """fastembed's `ImageEmbedding` feeding `upload_points`.

    Variant: batch size in one process, or `parallel` with the batch size of its one process per CPU. `parallel` starts
    its processes anew in each call and each loads the model; in a long load that does not count, so `seconds` is what
    all photos take at the pace of the middle of the load (a line through the arrivals from 30 % to 95 % of it).
    `whole_seconds` is the call as it was.
    """
    from fastembed import ImageEmbedding
    from qdrant_client import QdrantClient, models

    from mcip_qdrant.cpus import available_cpus

    paths = photo_paths(config)
    parallel = config["variant"].startswith("parallel")
    batch_size = int(config["variant"].removeprefix("parallel"))
    if parallel and len(paths) < _LEAST_BATCHES * batch_size:
        raise SystemExit(f"{len(paths)} photos are too few to see the pace of batches of {batch_size}")
    model = ImageEmbedding(
        config["fastembed_name"],
        specific_model_path=config["fastembed"],
        threads=available_cpus(),
        cuda=False,
        lazy_load=parallel,
    )
    processes = available_cpus() if parallel else None

    def work() -> tuple[dict[str, Any], Any]:
        arrivals: list[float] = []

        def points() -> Iterator[models.PointStruct]:
            vectors = model.embed([str(path) for path in paths], batch_size=batch_size, parallel=processes)
            for number, (path, vector) in enumerate(zip(paths, vectors, strict=True)):
                arrivals.append(time.perf_counter())
                yield models.PointStruct(id=number, vector=vector.tolist(), payload={"uri": str(path)})

        with _new_folder() as place:
            start = time.perf_counter()
            client = QdrantClient(path=place)
            size = models.VectorParams(size=config["dim"], distance=models.Distance.COSINE)
            client.create_collection(COLLECTION, vectors_config=size)
            client.upload_points(COLLECTION, points(), wait=True)
            whole = time.perf_counter() - start
            found = _vectors(client, lambda record: record.id)
            client.close()
        return {"seconds": _steady(arrivals) if parallel else whole, "whole_seconds": whole}, found

    return work


def _steady(arrivals: list[float]) -> float:
    numbers = np.arange(len(arrivals))[int(len(arrivals) * 0.3) : int(len(arrivals) * 0.95)]
    return float(np.polyfit(numbers, np.asarray(arrivals)[numbers], 1)[0]) * len(arrivals)


class _new_folder:  # noqa: N801  used like a function
    def __enter__(self) -> str:
        self.path = tempfile.mkdtemp(prefix="qdrant-")
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path)


def _vectors(client: Any, order: Callable[[Any], Any]) -> Any:
    records, _ = client.scroll(COLLECTION, limit=100_000, with_vectors=True, with_payload=True)
    return np.array([record.vector for record in sorted(records, key=order)], dtype=np.float32)


if __name__ == "__main__":
    from _harness import serve

    serve({"bare": bare, "ours": ours, "fastembed": fastembed})

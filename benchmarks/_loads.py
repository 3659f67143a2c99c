"""One load of a folder into embedded Qdrant, in a process of its own that may fail or be killed: ours, or fastembed's loop.

Prints a line with the number of images embedded so far after each batch, and `done` at the end. Not a script to run by
hand: `corrupt.py` and `killed.py` start it.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

COLLECTION = "images"


def ours(config: Mapping[str, Any]) -> None:
    """`ingest`, as the command line calls it, with an encoder that counts."""
    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.encoder import EncoderSettings, ImageEncoder
    from mcip_qdrant.ingest import IngestOptions, ingest
    from mcip_qdrant.session import Device
    from mcip_qdrant.source import FolderSource
    from mcip_qdrant.store import open_store

    counting = threading.Lock()

    class Counting(ImageEncoder):
        embedded = 0

        def encode(self, pixels: Any) -> Any:
            vectors = super().encode(pixels)
            with counting:
                Counting.embedded += len(vectors)
                print(Counting.embedded, flush=True)
            return vectors

    bundle = Bundle.open(config["bundle"])
    # Batches side by side, as `open_encoder` has them.
    encoder = Counting(bundle, EncoderSettings(Device.parse("cpu"), threads=1))
    store = open_store(config["qdrant"])
    source = FolderSource("photos", Path(config["photos"]))
    ingest(source, bundle, encoder, store, IngestOptions(collection=COLLECTION))
    store.close()


def fastembed(config: Mapping[str, Any]) -> None:
    """fastembed into `upload_points`: what its documentation and Qdrant's show, with ids that a restart repeats."""
    from fastembed import ImageEmbedding
    from qdrant_client import QdrantClient, models

    model = ImageEmbedding(config["fastembed_name"], specific_model_path=config["fastembed"], cuda=False)
    paths = sorted(str(path) for path in Path(config["photos"]).glob("*.jpg"))
    client = QdrantClient(path=config["qdrant"])
    if not client.collection_exists(COLLECTION):
        size = models.VectorParams(size=512, distance=models.Distance.COSINE)
        client.create_collection(COLLECTION, vectors_config=size)

    def points() -> Iterator[models.PointStruct]:
        vectors = model.embed(paths, batch_size=16, parallel=config.get("parallel"))
        for number, (path, vector) in enumerate(zip(paths, vectors, strict=True)):
            if number % 16 == 0:
                print(min(number + 16, len(paths)), flush=True)
            yield models.PointStruct(id=number, vector=vector.tolist(), payload={"key": path})

    client.upload_points(COLLECTION, points(), wait=True)
    client.close()


if __name__ == "__main__":
    {"ours": ours, "fastembed": fastembed}[sys.argv[1]](json.loads(sys.argv[2]))
    print("done", flush=True)

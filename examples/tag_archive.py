"""Tag a whole archive by zero-shot prompts: each image gets the label whose texts it is nearest to. No image is read again.

    python examples/tag_archive.py cat dog "red car=a red car|a car painted red" other="a photo"

Writes two payload fields: `tag`, and `tagged_by`, which names this set of labels and the model. Interrupt it whenever you like: the same
command goes on with what is left. Other labels, or images that arrived since, are done by running it again.
"""

import argparse
import hashlib
import os

import numpy as np
from qdrant_client import QdrantClient, models
from tqdm import tqdm

from mcip_qdrant import ImageCollection, QueryEncoder

PROMPTS = ("a photo of a {}", "a close-up photo of a {}", "a picture of a {} among other things")


def parse_label(argument: str) -> tuple[str, list[str]]:
    """`cat`, or `red car=a red car|a car painted red` with texts of your own."""
    label, _, texts = argument.partition("=")
    if not label:
        raise argparse.ArgumentTypeError("a label must not be empty")
    return label, texts.split("|") if texts else [prompt.format(label) for prompt in PROMPTS]


def main() -> None:
    """Tag what is not tagged yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", nargs="+", type=parse_label, metavar="LABEL[=TEXT|TEXT…]")
    parser.add_argument("--bundle", default=os.environ.get("MCIP_QDRANT_BUNDLE", "bundle"))
    parser.add_argument("--qdrant", default=os.environ.get("MCIP_QDRANT_URL", "qdrant"), help="URL or folder")
    parser.add_argument("--collection", default=os.environ.get("MCIP_QDRANT_COLLECTION", "images"))
    parser.add_argument("--all", action="store_true", help="begin again: files have changed")
    parser.add_argument("--batch", type=int, default=256, help="points per request")
    options = parser.parse_args()
    labels = dict(options.labels)

    is_url = "://" in options.qdrant
    client = QdrantClient(options.qdrant) if is_url else QdrantClient(path=options.qdrant)
    encoder = QueryEncoder.open(options.bundle)
    images = ImageCollection(client, options.collection, encoder)
    total = images.count()  # refuses a collection of another model, before anything is written
    # [labels, D]: the direction between the texts of each label.
    vectors = encoder.mixes([[(text, 1.0) for text in texts] for texts in labels.values()])
    run = hashlib.sha256(repr((encoder.bundle.space_id, labels)).encode()).hexdigest()[:16]
    if is_url:  # for the filter below, and for searches by tag
        for field in ("tag", "tagged_by"):
            client.create_payload_index(options.collection, field, models.PayloadSchemaType.KEYWORD)

    done = models.FieldCondition(key="tagged_by", match=models.MatchValue(value=run))
    left = models.Filter(must_not=[done])
    if options.all:
        client.delete_payload(options.collection, ["tagged_by"], points=models.Filter(must=[done]))
    with tqdm(total=total, initial=images.count(models.Filter(must=[done])), unit="image") as bar:
        # What was written no longer passes the filter, so the next page is always the first one.
        while points := client.scroll(options.collection, left, limit=options.batch, with_vectors=True)[0]:
            nearest = (np.array([point.vector for point in points]) @ vectors.T).argmax(axis=1)
            for place, label in enumerate(labels):
                if ids := [point.id for point, best in zip(points, nearest, strict=True) if best == place]:
                    client.set_payload(options.collection, {"tag": label, "tagged_by": run}, points=ids)
            bar.update(len(points))
    for facet in images.facets("tag", limit=len(labels), filter=models.Filter(must=[done])):
        print(f"{facet.count:8,}  {facet.value}")
    client.close()


if __name__ == "__main__":
    main()

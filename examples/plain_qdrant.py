"""Search with Qdrant's own client: mcip-qdrant only turns words, or a picture, into the vector.

python examples/plain_qdrant.py "a red car in the snow"
python examples/plain_qdrant.py car.jpg --limit 3 --newer-than 2024-01-01
"""

import argparse
import os
from datetime import datetime
from pathlib import Path

from qdrant_client import QdrantClient, models

from mcip_qdrant import QueryEncoder


def main() -> None:
    """Print the best hits: score and uri."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", help="words, or the path of a picture")
    parser.add_argument("--bundle", default=os.environ.get("MCIP_QDRANT_BUNDLE", "bundle"))
    parser.add_argument("--qdrant", default=os.environ.get("MCIP_QDRANT_URL", "qdrant"), help="URL or folder")
    parser.add_argument("--collection", default=os.environ.get("MCIP_QDRANT_COLLECTION", "images"))
    parser.add_argument("--limit", type=int, default=5)
    parser.add_argument("--newer-than", type=datetime.fromisoformat, help="only files modified after this date")
    options = parser.parse_args()

    encoder = QueryEncoder.open(options.bundle)
    path = Path(options.query)
    vector = encoder.image(path) if path.is_file() else encoder.text(options.query)

    newer = None
    if options.newer_than:
        recent = models.DatetimeRange(gt=options.newer_than)
        newer = models.Filter(must=[models.FieldCondition(key="modified_at", range=recent)])
    client = QdrantClient(options.qdrant) if "://" in options.qdrant else QdrantClient(path=options.qdrant)
    answer = client.query_points(options.collection, query=vector.tolist(), query_filter=newer, limit=options.limit)
    for point in answer.points:
        print(f"{point.score:.4f}  {point.payload['uri']}")
    client.close()


if __name__ == "__main__":
    main()

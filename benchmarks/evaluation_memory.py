"""Full-size evaluation in bounded memory: 12,000 x 12,000 similarities (GPR1200's shape) and a database of 1,000,000 vectors.

Runs the metrics of `mcip_qdrant.evaluation` on seeded random vectors of 1,152 dimensions (the width of the larger released
model), each shape in a process of its own, and prints the largest resident memory that the kernel saw. Needs 5 GB of disk
for the million vectors, and a few minutes:

    python benchmarks/evaluation_memory.py            # both shapes
    python benchmarks/evaluation_memory.py --shape gpr1200
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mcip_qdrant.evaluation.metrics import full_ranking_map, recall_at_k, revisited_map, weighted_knn
from mcip_qdrant.evaluation.rows import RowWriter
from mcip_qdrant.evaluation.scores import Junk
from mcip_qdrant.evaluation.similarity import Rows

WIDTH = 1152
LIMIT_GB = 4.0
_PART = 20_000


def rows(count: int, folder: Path, seed: int) -> Rows:
    """Random unit vectors, written in parts as `embed` writes them: to memory if they fit there, else to disk."""
    random = np.random.default_rng(seed)
    writer = RowWriter(count, WIDTH, folder=folder)
    for start in range(0, count, _PART):
        part = random.standard_normal((min(_PART, count - start), WIDTH), dtype=np.float32)
        writer.add(part / np.linalg.norm(part, axis=1, keepdims=True))
    return writer.finish()


def gpr1200(folder: Path) -> dict[str, float]:
    """12,000 images of 1,200 classes: the full ranking of every image, and recall@k."""
    vectors, labels = rows(12_000, folder, 0), np.repeat(np.arange(1200), 10)
    start = time.perf_counter()
    score = full_ranking_map(vectors, labels)
    middle = time.perf_counter()
    recall = recall_at_k(vectors, labels, [1, 8])
    return {
        "mAP": score.mean,
        "mAP seconds": middle - start,
        "R@8": recall[8].mean,
        "R@k seconds": time.perf_counter() - middle,
    }


def million(folder: Path) -> dict[str, float]:
    """1,000,000 database vectors: 70 queries of the revisited protocol, 256 of weighted k-NN."""
    database, queries = rows(1_000_000, folder, 0), rows(256, folder, 1)
    random = np.random.default_rng(2)
    answers = [Junk(*np.split(random.permutation(1_000_000)[:60], [20, 40])) for _ in range(70)]
    start = time.perf_counter()
    oxford = revisited_map(queries[0:70], database, answers)
    middle = time.perf_counter()
    labels = random.integers(0, 1000, 1_000_000)
    votes = weighted_knn(database, labels, queries, random.integers(0, 1000, 256))
    return {
        "mAP medium": oxford["medium"].mean,
        "revisited seconds (70 queries)": middle - start,
        "k-NN accuracy": votes.mean,
        "k-NN seconds (256 queries)": time.perf_counter() - middle,
    }


SHAPES = {"gpr1200": gpr1200, "million": million}


def _measured(name: str, folder: str, answer: Any) -> None:
    found = SHAPES[name](Path(folder))
    found["largest resident memory, GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    answer.put(found)


def main() -> None:
    """Measure, print, and fail where the limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), action="append", help="only this one")
    parser.add_argument(
        "--work", type=Path, default=None, help="folder for the vectors on disk (default: the system's)"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {}
    context = multiprocessing.get_context("spawn")
    for name in options.shape or SHAPES:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            answer = context.Queue()
            process = context.Process(target=_measured, args=(name, folder, answer))
            process.start()
            results[name] = answer.get()
            process.join()
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        for name, found in results.items():
            print(name)
            for what, value in found.items():
                print(f"  {what}: {value:.4g}")
    if any(found["largest resident memory, GB"] > LIMIT_GB for found in results.values()):
        raise SystemExit(f"more than {LIMIT_GB} GB")


if __name__ == "__main__":
    main()

"""640x480 JPEGs, ViT-B/32, end to end into embedded Qdrant on disk: against bare ONNX Runtime, and against fastembed.

* Bare ONNX Runtime: the same graph file on pixels that are ready in memory, batch 16, its default spinning. It decodes
  and stores nothing, so this is a ceiling: 1.00 would mean that all the rest is free.
* fastembed `ImageEmbedding` + `upload_points`, with the same weights: batch 16, batch 64, and one process per CPU
  (`parallel`; the start of those processes is left out). Its best setting is the one that was fastest in this run.

The photos are sections of real photographs that ship inside scikit-image and scikit-learn. Cosine between all of them is
asserted in every round; otherwise there is no figure and the exit code is 1.
"""

from __future__ import annotations

import statistics

from _harness import Peer, Row, Script, interleave, ratios, report, same_vectors
from _models import FASTEMBED_NAME, photos, vit_b_32

OURS, BARE = "ours:exact", "bare"
PARALLEL = "fastembed:parallel8"
SETTINGS = {"fastembed:16": "batch 16", "fastembed:64": "batch 64", PARALLEL: "one process per CPU"}


def main() -> None:
    """Measure and print."""
    script = Script(__doc__ or "")
    script.parser.add_argument("--photos", type=int, default=256, help="how many (default: %(default)s)")
    options = script.parse()
    model = vit_b_32(options.work)
    config = {
        "bundle": str(model.bundle),
        "fastembed": str(model.fastembed),
        "fastembed_name": FASTEMBED_NAME,
        "dim": 512,
        "photos": str(photos(options.work, options.photos, 640, 480)),
    }
    peers = [Peer(name, "_ingest_peers.py", config) for name in (OURS, BARE, *SETTINGS)]
    results = interleave(peers, options.rounds, same_vectors)

    seconds = {name: statistics.median(one["seconds"] for one in results[name]) for name in SETTINGS}
    best = min(seconds, key=lambda name: seconds[name])
    stages = results[OURS][-1]["stages"]
    total = sum(stages.values())
    shares = ", ".join(f"{name} {spent / total:.0%}" for name, spent in stages.items())
    what = f"ingest {options.photos} JPEGs of 640x480, ViT-B/32, into embedded Qdrant"
    rows = [
        Row(what, "bare ONNX Runtime on ready tensors", 0.92, ratios(results, OURS, BARE), f"our stages: {shares}"),
        Row(what, "fastembed, batch 16, same weights", 1.05, ratios(results, OURS, "fastembed:16")),
        Row(what, f"fastembed's best: {SETTINGS[best]}", 1.05, ratios(results, OURS, best), _others(seconds, best)),
    ]
    if best != PARALLEL:
        against = f"fastembed, {SETTINGS[PARALLEL]}, after its start"
        rows.append(Row(what, against, None, ratios(results, OURS, PARALLEL)))
    report(rows, as_json=options.json)


def _others(seconds: dict[str, float], best: str) -> str:
    others = [
        f"{SETTINGS[name]} takes {spent / seconds[best]:.2f} times as long"
        for name, spent in seconds.items()
        if name != best
    ]
    start = " (its start, about the loading of a model per process, left out)" if best == PARALLEL else ""
    return "; ".join(others) + start


if __name__ == "__main__":
    main()

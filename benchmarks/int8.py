"""The int8 image graph against the fp32 one on this machine's CPU, with the loss of accuracy beside the speed.

Both run on ready pixels of real photographs, batch 16, in processes of their own, in turn. int8 vectors are not fp32
vectors, so the cosine is a result here, not a condition; fp32 is compared with nothing.

Top-10 agreement: each photo searches all the others, once with the int8 vectors on both sides, once with an int8 query
on fp32 vectors (a laptop in a collection that a server filled); counted is the share of the ten nearest by fp32 that
come back. Weights are random: a trained model's figures are in the manifest of its bundle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _harness import Fact, Peer, Row, Script, cosines, interleave, ratios, report, serve
from _models import photos, vit_b_32
from numpy.typing import NDArray

BATCH, TOP = 16, 10


def encoder(config: Mapping[str, Any]) -> Callable[[], tuple[dict[str, Any], Any]]:
    """Our image encoder; the variant is the precision."""
    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.decode import decode
    from mcip_qdrant.encoder import EncoderSettings, ImageEncoder
    from mcip_qdrant.preprocess import preprocess
    from mcip_qdrant.session import Device

    bundle = Bundle.open(config["bundle"])
    images = ImageEncoder(bundle, EncoderSettings(Device.parse("cpu"), config["variant"]))
    how = bundle.manifest.preprocess
    paths = sorted(Path(config["photos"]).glob("*.jpg"))
    pixels = np.stack([preprocess(decode(path.read_bytes()).rgb, how) for path in paths])

    def work() -> tuple[dict[str, Any], Any]:
        start = time.perf_counter()
        parts = [images.encode(pixels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)]
        return {"seconds": time.perf_counter() - start}, np.concatenate(parts)

    return work


def nearest(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each query the numbers of its ten nearest vectors, itself left out."""
    scores = queries @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP]


def agreement(found: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    """Share of `expected` that is in `found`, row by row."""
    return float(np.mean([len(set(a) & set(b)) / TOP for a, b in zip(found, expected, strict=True)]))


def main() -> None:
    """Measure and print."""
    script = Script(__doc__ or "")
    script.parser.add_argument("--photos", type=int, default=256, help="how many (default: %(default)s)")
    options = script.parse()
    config = {
        "bundle": str(vit_b_32(options.work).bundle),
        "photos": str(photos(options.work, options.photos, 640, 480)),
    }
    whole, small = peers = [Peer(name, "int8.py", config) for name in ("encoder:fp32", "encoder:int8")]
    results = interleave(peers, options.rounds, lambda _peers: None)
    fp32, int8 = whole.vectors, small.vectors
    assert fp32 is not None  # noqa: S101
    assert int8 is not None  # noqa: S101
    cosine, expected = cosines(fp32, int8), nearest(fp32, fp32)
    both = agreement(nearest(int8, int8), expected)
    mixed = agreement(nearest(int8, fp32), expected)
    apart = np.median((fp32 @ fp32.T)[np.triu_indices(len(fp32), 1)])
    note = f"cosine to fp32: lowest {cosine.min():.4f}, median {np.median(cosine):.4f}"
    report(
        [
            Row("image graph in int8, CPU, ViT-B/32", "fp32 graph", 1.8, ratios(results, small.name, whole.name), note),
            Fact(
                f"top-{TOP} agreement of int8 with fp32, {len(fp32)} photos",
                "fp32 on both sides",
                "–",
                f"**{both:.0%}** int8 on both sides; {mixed:.0%} int8 query on fp32 vectors",
                None,
                f"random weights; median cosine between two photos {apart:.2f}",
            ),
        ],
        as_json=options.json,
    )


if __name__ == "__main__":
    import sys

    if sys.argv[1:2] and sys.argv[1].startswith("encoder:"):
        serve({"encoder": encoder})
    else:
        main()

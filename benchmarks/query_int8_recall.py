"""What int8 costs in answers: recall@10 of int8 against fp32, for texts and for pictures as queries.

A collection of photographs is searched by 64 texts and by each photograph (itself left out). Counted is the share of the ten
best by fp32 on both sides that come back. Two cases: an int8 query on vectors that an fp32 process stored (a laptop asking a
server's collection), and int8 on both sides. Queries are encoded one by one, as a user asks them.

Without `--bundle` the model is a ViT-B/32 with random weights, whose vectors lie closer together than a trained model's: then the
figures say that the graphs work, and nothing about your answers. With `--bundle` and `--images` they are yours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _harness import Fact, Script, cosines, report, say
from _models import photos, vit_b_32
from int8 import TOP, agreement
from numpy.typing import NDArray
from query_warm import queries

from mcip_qdrant import QueryEncoder
from mcip_qdrant.source import IMAGE_SUFFIXES

BUNDLE_NOTE, RANDOM_NOTE = "your bundle", "random weights"


def best(queries: NDArray[np.float32], vectors: NDArray[np.float32], *, itself: bool) -> NDArray[np.int64]:
    """For each query the numbers of its ten nearest vectors; with `itself`, query i is vector i and left out."""
    scores = queries @ vectors.T
    if itself:
        np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP]


def encoded(bundle: Path, precision: Any, paths: list[Path]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of the texts and of the photographs, each encoded by itself."""
    say(f"encoding with {precision}")
    with QueryEncoder.open(bundle, device="cpu", precision=precision) as encoder:
        return np.stack([encoder.text(text) for text in queries()]), np.stack([encoder.image(path) for path in paths])


def rows(bundle: Path, paths: list[Path], note: str) -> list[Fact]:
    """Encode in both precisions and compare."""
    texts, images = encoded(bundle, "fp32", paths)
    small_texts, small_images = encoded(bundle, "int8", paths)
    found = []
    for what, whole, small, itself in (("text", texts, small_texts, False), ("image", images, small_images, True)):
        expected = best(whole, images, itself=itself)
        mixed = agreement(best(small, images, itself=itself), expected)
        both = agreement(best(small, small_images, itself=itself), expected)
        cosine = cosines(whole, small)
        found.append(
            Fact(
                f"recall@{TOP} of int8 {what} queries, {len(paths)} photos",
                "fp32 on both sides",
                "–",
                f"**{mixed:.1%}** on fp32 vectors; {both:.1%} with int8 on both sides",
                None,
                f"{note}; cosine to fp32: lowest {cosine.min():.4f}, median {np.median(cosine):.4f}",
            )
        )
    return found


def main() -> None:
    """Measure and print."""
    script = Script(__doc__ or "", rounds=1)
    script.parser.add_argument(
        "--bundle", type=Path, help="a bundle with fp32 and int8 graphs (default: random weights)"
    )
    script.parser.add_argument(
        "--images", type=Path, help="a folder of pictures (default: sections of sample photographs)"
    )
    script.parser.add_argument("--count", type=int, default=256, help="at most so many pictures (default: %(default)s)")
    options = script.parse()
    bundle = options.bundle or vit_b_32(options.work).bundle
    folder = options.images or photos(options.work, options.count, 640, 480)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower().encode() in IMAGE_SUFFIXES)[
        : options.count
    ]
    if len(paths) <= TOP:
        raise SystemExit(f"{folder} holds {len(paths)} pictures; recall@{TOP} needs more than {TOP}")
    report(rows(bundle, paths, BUNDLE_NOTE if options.bundle else RANDOM_NOTE), as_json=options.json)


if __name__ == "__main__":
    main()

"""12-megapixel JPEGs, ViT-B/32, end to end into embedded Qdrant: `--decode scaled` and `exact` against fastembed.

The photos are 4000x3000, upscaled from sections of real photographs that ship inside scikit-image and scikit-learn.
Upscaled photos are smoother than a camera's, so their files are smaller and decode faster: the ratio is rather too low
than too high. `--photos DIR` measures on JPEGs of your own as well, as they are, and compares scaled with exact decoding
on them. Debian's wallpaper packages hold about 60 photographs of 2 to 20 megapixels; without installing them:

  apt-get download mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 ukui-wallpapers plasma-workspace-wallpapers
  for package in *.deb; do dpkg -x "$package" wallpapers; done

Cosine between scaled and exact is printed as its 1st percentile. How close together a model places different photos
differs from model to model, so 1 - cosine is also given as a share of its median between two different photos.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _harness import Fact, Peer, Row, Script, cosines, interleave, ratios, report, require_same, same_vectors
from _models import FASTEMBED_NAME, Model, photos, vit_b_32
from PIL import Image

SCALED, EXACT = "ours:scaled", "ours:exact"
PARALLEL = "fastembed:parallel4"
SHORT_SIDE = 4 * 224  # from here on scaled decoding skips pixels: half of it is still twice the model's side


def main() -> None:
    """Measure and print."""
    script = Script(__doc__ or "")
    script.parser.add_argument("--count", type=int, default=48, help="upscaled photos (default: %(default)s)")
    script.parser.add_argument(
        "--photos", type=Path, help="a folder of your own camera-size JPEGs, searched to its depth"
    )
    options = script.parse()
    model = vit_b_32(options.work)
    upscaled = photos(options.work, options.count, 4000, 3000)
    rows = measured(options, model, upscaled, f"{options.count} JPEGs of 12 megapixels (upscaled photos)", 2.5)
    if options.photos is not None:
        own = camera_photos(options.work, options.photos)
        count, pixels = described(own)
        rows += measured(options, model, own, f"{count} camera-size JPEGs (median {pixels:.0f} megapixels)", None)
    report(rows, as_json=options.json)


def measured(
    options: argparse.Namespace, model: Model, folder: Path, what: str, target: float | None
) -> list[Row | Fact]:
    """Speed of both decoding modes, and how far scaled vectors are from exact ones."""
    config = {
        "bundle": str(model.bundle),
        "fastembed": str(model.fastembed),
        "fastembed_name": FASTEMBED_NAME,
        "dim": 512,
        "photos": str(folder),
    }
    names = [SCALED, EXACT, "fastembed:16", PARALLEL]
    peers = [Peer(name, "_ingest_peers.py", config) for name in names]
    results = interleave(peers, options.rounds, same_vectors if target else same_exact_vectors)
    scaled, exact = (next(peer.vectors for peer in peers if peer.name == name) for name in (SCALED, EXACT))
    assert exact is not None  # noqa: S101
    cosine = cosines(scaled, exact)
    apart = 1 - np.median((exact @ exact.T)[np.triu_indices(len(exact), 1)])
    moved = (1 - np.percentile(cosine, 1)) / apart
    what = f"ingest {what}, ViT-B/32, into embedded Qdrant"
    parallel = "fastembed, one process per CPU, after its start"
    return [
        Row(f"{what}, `scaled`", "fastembed, batch 16, same weights", target, ratios(results, SCALED, "fastembed:16")),
        Row(f"{what}, `scaled`", parallel, target, ratios(results, SCALED, PARALLEL)),
        Row(f"{what}, `exact`", "fastembed, batch 16, same weights", None, ratios(results, EXACT, "fastembed:16")),
        Fact(
            "cosine of scaled with exact decoding, 1st percentile",
            f"the {len(cosine)} photos of the rows above",
            "0.9995",
            f"**{np.percentile(cosine, 1):.6f}** (lowest {cosine.min():.6f}, median {np.median(cosine):.6f})",
            bool(np.percentile(cosine, 1) >= 0.9995),
            f"1 - cosine is {moved:.2%} of the median between two different photos",
        ),
    ]


def same_exact_vectors(peers: Sequence[Peer]) -> None:
    """Peers that decode every pixel must agree; how far scaled decoding is from them is itself a result."""
    require_same({peer.name: peer.vectors for peer in peers if peer.name != SCALED})


def camera_photos(work: Path, folder: Path) -> Path:
    """Copies of the upright RGB JPEGs below `folder` on which scaled decoding has an effect, in a flat folder.

    Grey, CMYK and turned pictures are left out: fastembed does not turn photos upright, so vectors would differ.
    """
    flat = work / "camera-photos"
    shutil.rmtree(flat, ignore_errors=True)
    flat.mkdir()
    candidates = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    for number, path in enumerate(candidates):
        if path.is_symlink():
            continue
        with Image.open(path) as image:
            upright = image.getexif().get(0x0112, 1) == 1
            if image.format == "JPEG" and image.mode == "RGB" and upright and min(image.size) >= SHORT_SIDE:
                shutil.copyfile(path, flat / f"{number:04}.jpg")
    if not any(flat.iterdir()):
        raise SystemExit(f"{folder} holds no upright RGB JPEG with a short side of at least {SHORT_SIDE} pixels")
    return flat


def described(folder: Path) -> tuple[int, float]:
    """Number of photos and their median size in megapixels."""
    sizes = []
    for path in folder.iterdir():
        with Image.open(path) as image:
            sizes.append(image.width * image.height / 1e6)
    return len(sizes), float(np.median(sizes))


if __name__ == "__main__":
    main()

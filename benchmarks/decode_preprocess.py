"""Decode + preprocess, one thread: this package against Pillow and open_clip's transform, and scaled against exact.

Real photographs that ship inside scikit-image and scikit-learn, saved as JPEG; nothing is downloaded. Both sides read
the same files and take turns; every figure is the median over rounds, with the lowest and highest round beside it.
Pixels are compared in the run: not equal, no figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcip_qdrant.decode import decode
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.preprocess import preprocess

VIT_B_32 = Preprocess(
    size=(224, 224), mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)

Step = Callable[[Path], Any]


def write_photos(folder: Path, width: int, height: int, quality: int) -> list[Path]:
    """Five real photographs, cropped to the wanted shape at the centre and resized (upscaled where that is larger)."""
    data: Any = import_module("skimage.data")
    datasets: Any = import_module("sklearn.datasets")
    arrays = [data.astronaut(), data.coffee(), data.chelsea(), *datasets.load_sample_images().images]
    paths = []
    for number, array in enumerate(arrays):
        photo = Image.fromarray(array)
        scale = min(photo.width / width, photo.height / height)
        left, top = (photo.width - width * scale) / 2, (photo.height - height * scale) / 2
        box = (left, top, left + width * scale, top + height * scale)
        path = folder / f"{width}x{height}-{number}.jpg"
        photo.resize((width, height), Image.Resampling.BICUBIC, box=box).save(path, quality=quality)
        paths.append(path)
    return paths


def take_turns(reference: Step, ours: Step, paths: Sequence[Path], rounds: int, warm_up: int) -> dict[str, float]:
    """Milliseconds per photo of either side, and the ratio reference / ours per round."""
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(warm_up + rounds):
        total = [0.0, 0.0]
        for index, path in enumerate(paths):
            # Who goes first alternates, so that neither side always meets the other's warm or cold cache.
            for side in (0, 1) if (number + index) % 2 else (1, 0):
                begin = time.perf_counter()
                (reference, ours)[side](path)
                total[side] += time.perf_counter() - begin
        if number >= warm_up:
            for side in (0, 1):
                spent[side].append(total[side] * 1000 / len(paths))
    ratios = [theirs / mine for theirs, mine in zip(*spent, strict=True)]
    return {
        "reference_ms": round(statistics.median(spent[0]), 3),
        "ours_ms": round(statistics.median(spent[1]), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def exact(path: Path) -> NDArray[np.uint8]:
    """As ingest does it by default."""
    return preprocess(decode(path.read_bytes()).rgb, VIT_B_32)


def scaled(path: Path) -> NDArray[np.uint8]:
    """As ingest does it with `--decode scaled`."""
    return preprocess(decode(path.read_bytes(), scaled_for=VIT_B_32).rgb, VIT_B_32)


def against_open_clip(folder: Path, rounds: int) -> dict[str, Any]:
    """640x480 and 480x640 photos through both, after checking that the pixels are equal."""
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    torch.set_num_threads(1)
    transform: Any = image_transform_v2(PreprocessCfg(size=224, mean=VIT_B_32.mean, std=VIT_B_32.std), is_train=False)
    mean, std = torch.tensor(VIT_B_32.mean).double(), torch.tensor(VIT_B_32.std).double()

    def reference(path: Path) -> Any:
        return transform(Image.open(path).convert("RGB"))

    results = {}
    for width, height in ((640, 480), (480, 640)):
        paths = write_photos(folder, width, height, quality=90)
        for path in paths:
            values = (reference(path).double().permute(1, 2, 0) * std + mean) * 255
            if not np.array_equal(values.round().to(torch.uint8).numpy(), exact(path)):
                raise SystemExit(f"pixels differ from open_clip's for {path.name}")
        results[f"{width}x{height}"] = {
            "photos": len(paths),
            "equal_pixels": True,
            **take_turns(reference, exact, paths, rounds, warm_up=5),
        }
    return results


def scaled_against_exact(folder: Path, rounds: int) -> dict[str, Any]:
    """12-megapixel JPEGs, upscaled from the same photos: speed, and how far the pixels move (levels of 0..255)."""
    paths = write_photos(folder, 4000, 3000, quality=90)
    gaps = [np.abs(exact(path).astype(int) - scaled(path).astype(int)) for path in paths]
    return {
        "photos": len(paths),
        "upscaled": True,
        "mean_difference": round(float(np.mean(gaps)), 3),
        "largest_difference": int(np.max(gaps)),
        **take_turns(exact, scaled, paths, rounds, warm_up=1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="rounds over the small photos (default: %(default)s)")
    parser.add_argument(
        "--large-rounds", type=int, default=10, help="rounds over the 12-megapixel photos; 0: leave out"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results: dict[str, Any] = {"exact_against_open_clip": against_open_clip(Path(name), options.rounds)}
        if options.large_rounds:
            results["scaled_against_exact_12_megapixels"] = scaled_against_exact(Path(name), options.large_rounds)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for shape, row in results["exact_against_open_clip"].items():
        print(f"{shape} JPEG, ViT-B/32, equal pixels: {_line(row, 'open_clip', 'ours')}")
    if row := results.get("scaled_against_exact_12_megapixels"):
        print(f"12-megapixel JPEG (upscaled photos): {_line(row, 'exact', 'scaled')}")
        print(f"  pixels move by {row['mean_difference']} levels on average, {row['largest_difference']} at most")


def _line(row: dict[str, Any], reference: str, ours: str) -> str:
    return (
        f"{reference} {row['reference_ms']} ms, {ours} {row['ours_ms']} ms: "
        f"{row['ratio']} times as fast ({row['ratio_min']}–{row['ratio_max']})"
    )


if __name__ == "__main__":
    main()

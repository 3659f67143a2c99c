"""A small archive and a small model for the tests of tuning: made once, trained in a second or two."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import models
import numpy as np
from PIL import Image

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
CLASSES, IMAGES = 8, 6


def write_model(folder: Path) -> tuple[str, Path]:
    """(`--model` value, checkpoint) of a small CLIP with seeded random weights."""
    name = models.write_config(folder / "arch", ARCHITECTURE, models.CLIP_PREPROCESS)
    return name, models.save_checkpoint(models.random_model(name, seed=5), folder / "base.pth")


def write_archive(folder: Path) -> Path:
    """`classes/<class>/<n>.jpg` and `table.jsonl` with classes and two captions per image; returns the table.

    Images of a class share a coarse pattern and differ in brightness and noise.
    """
    rng = np.random.default_rng(11)
    rows = []
    for label in range(CLASSES):
        pattern = rng.integers(0, 200, (4, 4, 3))
        for number in range(IMAGES):
            pixels = np.clip(pattern + rng.integers(-25, 25) + rng.integers(0, 30, (4, 4, 3)), 0, 255)
            path = folder / "classes" / f"kind-{label}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).resize((48, 40), Image.Resampling.BICUBIC).save(path, quality=92)
            captions = [f"a thing of kind {label}", f"kind {label} at brightness {number}"]
            rows.append({"image": str(path.relative_to(folder)), "class": f"kind-{label}", "captions": captions})
    table = folder / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


@contextmanager
def read_errors(paths: Sequence[Path]) -> Iterator[None]:
    """Make files unreadable for a while without a trace in their size and time, as a failing disk does."""
    kept = [(path, path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    try:
        for path, data, changed_ns in kept:
            path.write_bytes(bytes(len(data)))
            os.utime(path, ns=(changed_ns, changed_ns))
        yield
    finally:
        for path, data, changed_ns in kept:
            path.write_bytes(data)
            os.utime(path, ns=(changed_ns, changed_ns))

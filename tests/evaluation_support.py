"""A model whose vectors follow from the pixels and the words, and small classes of real photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from photos import photo_paths
from PIL import Image

from mcip_qdrant.manifest import Preprocess


class MeanColours:
    """A real, if humble, model: the mean colour of each quarter of the picture; texts by their length. Counts its work."""

    label = "mean colours"
    space_id = "c0" * 32
    variant = "numpy"
    embedding_dim = 12
    preprocess = Preprocess(size=(16, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def __init__(self) -> None:
        self.images = 0
        self.texts = 0

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.images += len(pixels)
        quarters = pixels.reshape(len(pixels), 2, 8, 2, 8, 3).mean(axis=(2, 4)).reshape(len(pixels), 12) + 1
        return (quarters / np.linalg.norm(quarters, axis=1, keepdims=True)).astype(np.float32)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += len(texts)
        angles = np.array([len(text) for text in texts], dtype=np.float64)[:, None] * np.arange(1, 13) / 7
        return (np.cos(angles) / np.linalg.norm(np.cos(angles), axis=1, keepdims=True)).astype(np.float32)


def write_classes(root: Path, classes: int = 5, views: int = 4) -> Path:
    """`root/class-N/M.jpg`: overlapping cuttings of one photograph for each class."""
    for number in range(classes):
        source = Image.open(photo_paths()[number]).convert("RGB")
        width, height = source.size
        folder = root / f"class-{number}"
        folder.mkdir(parents=True)
        for view in range(views):
            left, top = int(0.3 * width * view / views), int(0.3 * height * (views - view) / views)
            cut = source.crop((left, top, left + int(0.6 * width), top + int(0.6 * height)))
            cut.thumbnail((120, 120))
            cut.save(folder / f"{view}.jpg", quality=90)
    return root

"""A split of the small world on disk: JPEG files and a table that the evaluation and the tuning read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.world.captions import Caption, caption_scene
from mcip_qdrant.world.render import PICTURE_SIZE, View, draw, jpeg, random_view
from mcip_qdrant.world.scenes import SIZES, Scene, Split, WorldSize, build_scenes

TABLE = "table.jsonl"


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a split: the file's path below the split's folder, its scene, and its captions."""

    path: str
    scene: Scene
    view: int
    captions: list[Caption]


def pictures(split: Split, *, seed: int, size: WorldSize | None = None) -> list[Picture]:
    """Every picture of a split, scene after scene, without drawing any."""
    size = size or SIZES[split]
    return [
        Picture(f"{scene.number:07d}/{view}.jpg", scene, view, caption_scene(scene, view, seed=seed))
        for scene in build_scenes(split, seed=seed, size=size)
        for view in range(size.views)
    ]


def write_split(
    folder: Path, split: Split, *, seed: int, size: WorldSize | None = None, pixels: int = PICTURE_SIZE, jobs: int = 1
) -> list[Picture]:
    """Draw a split into `folder` as `<scene>/<view>.jpg` and write `table.jsonl` (image, class, captions) last.

    A split that is complete, its table written, is left as it is.

    Args:
        folder: made if need be.
        split: which instances.
        seed: of the world, not of a training.
        size: other than the world's own size.
        pixels: width and height of a picture.
        jobs: processes that draw.
    """
    made = pictures(split, seed=seed, size=size)
    table = folder / TABLE
    if table.is_file():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(_write, folder, seed, pixels)
    if jobs == 1:
        for picture in made:
            work(picture)
    else:
        with ProcessPoolExecutor(jobs) as pool:
            list(pool.map(work, made, chunksize=200))
    _write_table(table, made)
    return made


def data_hash(made: Iterable[Picture], *, seed: int) -> str:
    """SHA-256 over pictures, see `DataHash`."""
    digest = DataHash()
    for picture in made:
        view = random_view(picture.scene, picture.view, seed=seed)
        digest.add(picture, view, draw(picture.scene, view))
    return digest.hexdigest()


class DataHash:
    """SHA-256 over pictures: facts, captions, and pixels before JPEG, whose encoders differ between versions."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, picture: Picture, view: View, pixels: NDArray[np.uint8]) -> None:
        """Add the next picture; `pixels` is what `draw` gave for it, uint8 `[H, W, 3]`."""
        texts = [caption.text for caption in picture.captions]
        facts = [picture.path, asdict(picture.scene), view.quality, texts]
        self._digest.update(json.dumps(facts, sort_keys=True).encode())
        self._digest.update(pixels.tobytes())

    def hexdigest(self) -> str:
        """The digest so far, 64 hexadecimal characters."""
        return self._digest.hexdigest()


def _write(folder: Path, seed: int, pixels: int, picture: Picture) -> None:
    path = folder / picture.path
    path.parent.mkdir(exist_ok=True)
    view = random_view(picture.scene, picture.view, seed=seed)
    path.write_bytes(jpeg(draw(picture.scene, view, size=pixels), view))


def _write_table(table: Path, made: Iterable[Picture]) -> None:
    rows = [
        {
            "image": picture.path,
            "class": f"{picture.scene.number:07d}",
            "captions": [caption.text for caption in picture.captions],
        }
        for picture in made
    ]
    unfinished = table.with_suffix(".partial")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(table)

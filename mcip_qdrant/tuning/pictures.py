"""Image files -> training pixels, with the augmentation of the paper's code, each picture by its own seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch.utils.data import Dataset

from mcip_qdrant.errors import ImageError
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.picture import rgb_image
from mcip_qdrant.preprocess import preprocess
from mcip_qdrant.tuning.hyper import HyperParameters
from mcip_qdrant.tuning.order import Draw

Pixels = NDArray[np.uint8]

_REPLACEMENTS: Final = 20
_RESAMPLING: Final = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def augment(rgb: Image.Image, config: Preprocess, hyper: HyperParameters, rng: random.Random) -> Pixels:
    """One training view of a picture.

    As in the paper's code: both sides resized to int(squash * size), a random crop of the model's size, perhaps mirrored,
    then brightness, contrast and saturation in random order (torchvision's ColorJitter on PIL pictures). With `squash` 1 the
    picture is resized and cropped as for evaluation.

    Returns:
        uint8 `[height, width, 3]` with `(height, width) == config.size`.
    """
    height, width = config.size
    if hyper.squash > 1:
        larger = int(hyper.squash * width), int(hyper.squash * height)
        picture = rgb.resize(larger, _RESAMPLING[config.interpolation])
        left, top = rng.randint(0, larger[0] - width), rng.randint(0, larger[1] - height)
        picture = picture.crop((left, top, left + width, top + height))
    else:
        picture = Image.fromarray(preprocess(rgb, config))
    if rng.random() < hyper.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    jitter: list[tuple[Callable[[Image.Image], ImageEnhance._Enhance], float]] = [
        (ImageEnhance.Brightness, hyper.brightness),
        (ImageEnhance.Contrast, hyper.contrast),
        (ImageEnhance.Color, hyper.saturation),
    ]
    rng.shuffle(jitter)
    for enhance, reach in jitter:
        if reach:
            picture = enhance(picture).enhance(rng.uniform(1 - reach, 1 + reach))
    return np.array(picture, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Failure:
    """An image file that could not be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One training picture; `failures` are the ones that it stands in for.

    `index` is the image that was really read, `pixels` is None where its stored vector is used instead, and `caption` is the
    number of the one that was chosen of its captions, or None. With `lost` nothing was read: so many failures one after the other
    mean that the archive went away, and a run must stop, all its processes together.
    """

    index: int
    pixels: Pixels | None
    caption: int | None
    failures: tuple[Failure, ...] = ()
    lost: bool = False


class TrainingPictures(Dataset[Sample]):
    """Draw -> picture. An image that cannot be read is replaced by another one, chosen by the draw's own seed.

    A batch keeps its size that way, which several processes need, and a second run chooses the same.

    Args:
        paths: the image files.
        config: the model's preprocessing.
        hyper: strength of the augmentation.
        caption_counts: captions per image, where one is to be chosen per draw; images without captions must not be here.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        config: Preprocess,
        hyper: HyperParameters,
        caption_counts: Sequence[int] | None = None,
    ) -> None:
        self._paths = paths
        self._config = config
        self._hyper = hyper
        self._caption_counts = caption_counts

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, draw: Draw) -> Sample:
        rng = draw.rng()
        failures: list[Failure] = []
        index = draw.index
        while True:
            try:
                pixels = augment(rgb_image(self._paths[index]), self._config, self._hyper, rng)
            except ImageError as exc:
                failures.append(_failure(self._paths[index], exc))
            else:
                caption = None if self._caption_counts is None else rng.randrange(self._caption_counts[index])
                return Sample(index, pixels, caption, tuple(failures))
            if len(failures) > _REPLACEMENTS:
                return Sample(index, None, None, tuple(failures), lost=True)
            index = rng.randrange(len(self._paths))


class TrainingPairs(Dataset[Sample]):
    """Draw -> image number and one of its captions, for images whose vectors are stored."""

    def __init__(self, caption_counts: Sequence[int]) -> None:
        self._caption_counts = caption_counts

    def __len__(self) -> int:
        return len(self._caption_counts)

    def __getitem__(self, draw: Draw) -> Sample:
        return Sample(draw.index, None, draw.rng().randrange(self._caption_counts[draw.index]))


class EvaluationPictures(Dataset["Pixels | Failure"]):
    """Index -> picture prepared as for search, or why it cannot be: uint8 `[height, width, 3]`."""

    def __init__(self, paths: Sequence[Path], config: Preprocess) -> None:
        self._paths = paths
        self._config = config

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Pixels | Failure:
        try:
            return preprocess(rgb_image(self._paths[index]), self._config)
        except ImageError as exc:
            return _failure(self._paths[index], exc)


def _failure(path: Path, exc: ImageError) -> Failure:
    return Failure(str(path), f"{exc.reason}: {str(exc).removeprefix(f'{path}: ')}")

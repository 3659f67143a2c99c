"""Augmentation, and what happens to files that cannot be read."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as reference

from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.preprocess import preprocess
from mcip_qdrant.tuning.hyper import hyper_parameters
from mcip_qdrant.tuning.order import Draw
from mcip_qdrant.tuning.pictures import EvaluationPictures, Failure, TrainingPairs, TrainingPictures, augment

CONFIG = Preprocess(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
PLAIN = hyper_parameters("gpr", squash=1.0, flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
PAPER = hyper_parameters("gpr")


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8))


def test_without_augmentation_it_is_the_models_own_preprocessing(picture: Image.Image) -> None:
    assert (augment(picture, CONFIG, PLAIN, random.Random(1)) == preprocess(picture, CONFIG)).all()


def test_squash_then_crop_is_a_window_of_the_squashed_picture(picture: Image.Image) -> None:
    made = augment(
        picture, CONFIG, hyper_parameters("gpr", flip=0, brightness=0, contrast=0, saturation=0), random.Random(3)
    )
    squashed = np.asarray(picture.resize((36, 36), Image.Resampling.BICUBIC))
    windows = [squashed[top : top + 32, left : left + 32] for top in range(5) for left in range(5)]
    assert sum((window == made).all() for window in windows) == 1


def test_mirror(picture: Image.Image) -> None:
    mirrored = augment(
        picture,
        CONFIG,
        hyper_parameters("gpr", squash=1, brightness=0, contrast=0, saturation=0, flip=1),
        random.Random(3),
    )
    assert (mirrored == preprocess(picture, CONFIG)[:, ::-1]).all()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_jitter_is_torchvisions(picture: Image.Image, name: str) -> None:
    only = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0} | {name: 0.4}
    hyper = hyper_parameters("gpr", squash=1.0, flip=0.0, **only)
    made = augment(picture, CONFIG, hyper, random.Random(5))
    adjust = getattr(reference, f"adjust_{name}")
    plain = Image.fromarray(preprocess(picture, CONFIG))
    # The factor is not known here, but it is one of 0.6..1.4.
    distances = [
        np.abs(np.asarray(adjust(plain, factor)).astype(int) - made).max() for factor in np.linspace(0.6, 1.4, 801)
    ]
    assert min(distances) <= 1
    assert np.abs(preprocess(picture, CONFIG).astype(int) - made).max() > 3


def test_a_draw_decides_everything(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    pictures = TrainingPictures([tmp_path / "a.png"], CONFIG, PAPER, [5])
    one, again, other = pictures[Draw(0, 7)], pictures[Draw(0, 7)], pictures[Draw(0, 8)]
    assert (one.pixels == again.pixels).all()
    assert one.caption == again.caption
    assert (one.pixels != other.pixels).any()
    assert {pictures[Draw(0, seed)].caption for seed in range(60)} == set(range(5))
    pairs = TrainingPairs([3])
    assert pairs[Draw(0, 7)] == pairs[Draw(0, 7)]
    assert {pairs[Draw(0, seed)].caption for seed in range(60)} == set(range(3))


def test_another_image_takes_the_place_of_an_unreadable_one(picture: Image.Image, tmp_path: Path) -> None:
    paths = [tmp_path / "gone.png", tmp_path / "torn.jpg", *(tmp_path / f"{number}.png" for number in range(8))]
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    for path in paths[2:]:
        picture.save(path)
    pictures = TrainingPictures(paths, CONFIG, PAPER)
    sample = pictures[Draw(0, 3)]
    assert sample.index >= 2
    assert sample.failures[0].path == str(tmp_path / "gone.png")
    assert "gone" in sample.failures[0].reason
    assert pictures[Draw(0, 3)].index == sample.index  # the same again
    torn = EvaluationPictures(paths, CONFIG)[1]
    assert isinstance(torn, Failure)
    assert torn.reason.startswith(("not_an_image", "corrupt"))
    assert len(pictures) == len(EvaluationPictures(paths, CONFIG)) == 10


def test_an_archive_that_went_away_is_told_as_such(tmp_path: Path) -> None:
    pictures = TrainingPictures([tmp_path / f"{number}.png" for number in range(4)], CONFIG, PAPER)
    sample = pictures[Draw(0, 1)]
    assert sample.lost
    assert sample.pixels is None
    assert len(sample.failures) == 21
    assert sample.failures[-1].reason == "gone: no such file"

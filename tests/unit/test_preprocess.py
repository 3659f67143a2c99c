"""Resize, crop and padding on pictures small enough to work out by hand. Parity with open_clip: tests/golden."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mcip_qdrant.manifest import Preprocess, ResizeMode
from mcip_qdrant.preprocess import preprocess, resized_size

MODES: tuple[ResizeMode, ...] = ("shortest", "longest", "squash")


def config(size: tuple[int, int], **options: Any) -> Preprocess:
    return Preprocess(size=size, mean=(0.0,) * 3, std=(1.0,) * 3, **options)


def grey(rows: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.repeat(np.array(rows, dtype=np.uint8)[:, :, None], 3, axis=2))


def levels(image: Image.Image, wanted: Preprocess) -> list[list[int]]:
    pixels = preprocess(image, wanted)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*wanted.size, 3)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert (pixels == pixels[:, :, :1]).all()
    rows: list[list[int]] = pixels[:, :, 0].tolist()
    return rows


def test_channels_stay_apart_and_in_order() -> None:
    pixels = preprocess(Image.new("RGB", (9, 5), (10, 20, 30)), config((4, 4)))
    assert (pixels == (10, 20, 30)).all()


def test_picture_of_the_right_size_is_left_alone() -> None:
    image = grey([[1, 2], [3, 4]])
    for mode in MODES:
        pixels = levels(image, config((2, 2), resize_mode=mode))
        assert pixels == [[1, 2], [3, 4]]
    preprocess(image, config((2, 2)))[:] = 0
    assert image.getpixel((1, 1)) == (4, 4, 4)


def test_bilinear_by_hand() -> None:
    # Half size: a triangle reaching 2 source pixels around each centre, weights 1/8 3/8 3/8 1/8, cut at the border.
    # Left: (3·0 + 3·80 + 1·80) / 7 = 45.7; right: (1·80 + 3·80 + 3·240) / 7 = 148.6
    image = grey([[0, 80, 80, 240]] * 4)
    wanted = config((2, 2), resize_mode="squash", interpolation="bilinear")
    assert levels(image, wanted) == [[46, 149]] * 2


def test_shortest_crops_the_centre() -> None:
    # No resizing: the short side has the target's length. (7 - 4) / 2 = 1.5 rounds to even: 2.
    wide = grey([[0, 1, 2, 3, 4, 5, 6]] * 4)
    assert levels(wide, config((4, 4))) == [[2, 3, 4, 5]] * 4
    # (9 - 4) / 2 = 2.5 rounds to even: 2.
    tall = grey([[row] * 4 for row in range(9)])
    assert levels(tall, config((4, 4))) == [[row] * 4 for row in (2, 3, 4, 5)]


def test_longest_pads_around_the_centre() -> None:
    # 4 x 3 into 4 x 4: one row to add, below rather than above.
    image = grey([[1] * 4, [2] * 4, [3] * 4])
    wanted = config((4, 4), resize_mode="longest", fill_color=9)
    assert levels(image, wanted) == [[1] * 4, [2] * 4, [3] * 4, [9] * 4]
    narrow = grey([[5], [6], [7], [8]])
    assert levels(narrow, config((4, 4), resize_mode="longest")) == [[0, n, 0, 0] for n in (5, 6, 7, 8)]


@pytest.mark.parametrize(
    ("size", "wanted", "resized"),
    [
        ((640, 480), config((224, 224)), (298, 224)),  # 298.67, cut off
        ((480, 640), config((224, 224)), (224, 298)),
        ((640, 480), config((224, 112)), (299, 224)),  # not square: 298.67, rounded
        ((640, 480), config((112, 224)), (224, 168)),
        ((640, 480), config((224, 224), resize_mode="longest"), (224, 168)),
        ((640, 480), config((224, 112), resize_mode="longest"), (112, 84)),
        ((640, 480), config((224, 112), resize_mode="squash"), (112, 224)),
        ((60_000, 1), config((224, 224), resize_mode="longest"), (224, 1)),  # open_clip fails here, at a height of 0
        ((1, 1), config((224, 224)), (224, 224)),
    ],
)
def test_resized_size(size: tuple[int, int], wanted: Preprocess, resized: tuple[int, int]) -> None:
    assert resized_size(*size, wanted) == resized


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (60_000, 1), (1, 60_000), (230, 1), (2, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_extreme_shapes(size: tuple[int, int], mode: ResizeMode) -> None:
    pixels = preprocess(Image.new("RGB", size, (1, 200, 255)), config((224, 224), resize_mode=mode))
    assert pixels.shape == (224, 224, 3)
    assert (pixels[111, 111] == (1, 200, 255)).all()


def test_blow_up_takes_the_middle() -> None:
    # One pixel high and resized 224-fold: the crop shows the middle pixel alone, but for the way into its neighbours.
    ramp = grey([[min(255, x // 200) for x in range(50_001)]])
    pixels = levels(ramp, config((224, 224)))
    assert {level for row in pixels for level in row} == {125}
    stripes = grey([[255 * (x == 25_000) for x in range(50_001)]])
    row = levels(stripes, config((224, 224), interpolation="bilinear"))[0]
    assert max(row[110:114]) >= 254
    assert abs(row[0] - 128) <= 1
    assert row == row[::-1]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_passes_one_by_one_change_no_pixel(interpolation: Any) -> None:
    chance = random.Random(0)
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    for _ in range(150):
        width, height, side = chance.randint(20, 700), chance.randint(20, 700), chance.choice((32, 100, 224))
        image = Image.fromarray(noise[:height, :width])
        wanted = config((side, side), interpolation=interpolation)
        size = resized_size(width, height, wanted)
        left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
        plain = image.resize(size, filters[interpolation]).crop((left, top, left + side, top + side))
        np.testing.assert_array_equal(preprocess(image, wanted), np.asarray(plain), err_msg=f"{width} x {height}")


def test_only_rgb_is_taken() -> None:
    with pytest.raises(ValueError, match="to_rgb"):
        preprocess(Image.new("L", (4, 4)), config((2, 2)))

"""`preprocess` against open_clip's own evaluation transform, on RGB pictures: equal pixels, not close ones."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from mcip_qdrant.manifest import Interpolation, Preprocess, ResizeMode
from mcip_qdrant.preprocess import preprocess, resized_size

MODES: tuple[ResizeMode, ...] = ("shortest", "longest", "squash")
INTERPOLATIONS: tuple[Interpolation, ...] = ("bicubic", "bilinear")
TARGETS = ((224, 224), (32, 32), (33, 47), (48, 31))


def config(size: tuple[int, int], mode: ResizeMode, interpolation: Interpolation, fill: int = 0) -> Preprocess:
    return Preprocess(
        size=size,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation=interpolation,
        resize_mode=mode,
        fill_color=fill,
    )


def reference(picture: Image.Image, wanted: Preprocess) -> NDArray[np.uint8]:
    """open_clip's transform, with the division by 255 undone (exact in float64, since the mean is 0 and the std 1)."""
    transform: Any = image_transform_v2(
        PreprocessCfg(
            size=wanted.size,
            mean=wanted.mean,
            std=wanted.std,
            interpolation=wanted.interpolation,
            resize_mode=wanted.resize_mode,
            fill_color=wanted.fill_color,
        ),
        is_train=False,
    )
    values = transform(picture).to(torch.float64).numpy() * 255.0
    assert np.abs(values - np.rint(values)).max() < 1e-4
    pixels: NDArray[np.uint8] = np.rint(values).astype(np.uint8).transpose(1, 2, 0)
    return pixels


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    # Noise has every rounding case and no smoothness that would hide a shift.
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photo(width: int, height: int) -> Image.Image:
    astronaut: Any = import_module("skimage.data").astronaut
    return Image.fromarray(astronaut()).resize((width, height), Image.Resampling.LANCZOS)


def check(picture: Image.Image, wanted: Preprocess) -> None:
    before = picture.tobytes()
    got = preprocess(picture, wanted)
    assert got.dtype == np.uint8
    assert got.shape == (*wanted.size, 3)
    assert got.flags.c_contiguous
    assert got.flags.writeable
    np.testing.assert_array_equal(got, reference(picture, wanted))
    assert picture.tobytes() == before


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(224, 224), (384, 384), (256, 192), (192, 256)])
@pytest.mark.parametrize("shape", [(640, 480), (480, 640), (500, 333), (224, 224), (225, 224), (100, 60), (1500, 1000)])
def test_photos_of_usual_sizes(
    shape: tuple[int, int], size: tuple[int, int], mode: ResizeMode, interpolation: Interpolation
) -> None:
    check(photo(*shape), config(size, mode, interpolation, fill=127))


@settings(max_examples=400, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    size=st.sampled_from(TARGETS),
    mode=st.sampled_from(MODES),
    interpolation=st.sampled_from(INTERPOLATIONS),
    fill=st.sampled_from((0, 127, 255)),
    seed=st.integers(0, 3),
)
def test_odd_sizes(
    *,
    width: int,
    height: int,
    size: tuple[int, int],
    mode: ResizeMode,
    interpolation: Interpolation,
    fill: int,
    seed: int,
) -> None:
    wanted = config(size, mode, interpolation, fill)
    if mode == "longest" and min(width / height, height / width) * max(size) < 2:
        return  # the reference rounds a side to nothing and fails; see the unit tests
    check(noise(width, height, seed), wanted)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(300, 1600), height=st.integers(300, 1600), interpolation=st.sampled_from(INTERPOLATIONS))
def test_crops_of_larger_pictures_on_both_roads(width: int, height: int, interpolation: Interpolation) -> None:
    # Sizes on either side of the limit below which the passes run one by one.
    check(noise(width, height), config((224, 224), "shortest", interpolation))


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (1, 40), (40, 1), (1, 900), (900, 1), (3000, 2), (7, 2000)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_extreme_shapes(shape: tuple[int, int], mode: ResizeMode) -> None:
    check(noise(*shape), config((224, 224), mode, "bicubic"))


@pytest.mark.parametrize("shape", [(1, 900), (900, 1), (2, 2999), (2999, 2), (200, 280), (280, 200)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_blow_up_road_stays_within_one_level(
    shape: tuple[int, int], interpolation: Interpolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config((224, 224), "shortest", interpolation)
    monkeypatch.setattr("mcip_qdrant.preprocess.BLOW_UP_PIXELS", 0)
    picture = noise(*shape)
    difference = preprocess(picture, wanted).astype(int) - reference(picture, wanted).astype(int)
    assert np.abs(difference).max() <= 1


def test_interpolation_is_bicubic_for_shortest_at_sizes_that_are_not_square() -> None:
    # open_clip's own omission; checkpoints were trained and evaluated with it.
    picture = noise(90, 70)
    size = (33, 47)
    bilinear, bicubic = (preprocess(picture, config(size, "shortest", name)) for name in ("bilinear", "bicubic"))
    np.testing.assert_array_equal(bilinear, bicubic)
    np.testing.assert_array_equal(bilinear, reference(picture, config(size, "shortest", "bilinear")))


def test_resized_size_is_the_size_before_the_crop() -> None:
    assert resized_size(640, 480, config((224, 224), "shortest", "bicubic")) == (298, 224)
    assert resized_size(480, 640, config((224, 224), "shortest", "bicubic")) == (224, 298)
    assert resized_size(640, 480, config((224, 224), "longest", "bicubic")) == (224, 168)
    assert resized_size(640, 480, config((100, 50), "squash", "bicubic")) == (50, 100)

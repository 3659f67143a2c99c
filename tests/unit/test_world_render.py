"""Drawn pictures show what their captions say: checked on pixels, by code that shares nothing with the renderer."""

from __future__ import annotations

import dataclasses
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from skimage.color import rgb2hsv
from skimage.measure import label, regionprops
from skimage.morphology import disk, erosion

from mcip_qdrant.evaluation.datasets import read_table
from mcip_qdrant.world.archive import TABLE, data_hash, pictures, write_split
from mcip_qdrant.world.render import View, draw, jpeg, random_view
from mcip_qdrant.world.scenes import Scene, WorldSize, build_scenes

SEED = 1
Pixels = npt.NDArray[np.float64]
PLAIN_VIEW = View((0.0, 0.0), 0.9, 0.0, (1.0, 1.0, 1.0), ((1.0, 1.0, 1.0),) * 4, (), 0.0, 0, 90)
HUES = {"red": 0, "orange": 27, "yellow": 54, "green": 120, "blue": 222, "purple": 280}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    drawn = build_scenes("test", seed=SEED, size=WorldSize(60, 1, 1))
    # Without gaps closed to nothing, so that the two things are two regions of pixels.
    return [
        dataclasses.replace(scene, arrangement=dataclasses.replace(scene.arrangement, gap=0.15, mark_radius=0.05))
        for scene in drawn
    ]


@cache
def things(scene: Scene) -> list[tuple[Pixels, Any]]:
    """The two things as (pixels [N, 3] in 0..1, region), the larger first, on a white background."""
    picture = draw(scene, PLAIN_VIEW, size=160).astype(np.float64) / 255
    regions = regionprops(label(picture.min(axis=2) < 0.97))
    regions = sorted(regions, key=lambda region: -region.area_bbox)[:2]
    return [(picture[region.coords[:, 0], region.coords[:, 1]], region) for region in regions]


def named_colour(pixels: Pixels) -> str:
    hue, saturation, _ = rgb2hsv(pixels).T
    angle = np.angle(np.exp(2j * np.pi * hue[saturation > 0.3]).mean(), deg=True) % 360
    return min(HUES, key=lambda name: abs((angle - HUES[name] + 180) % 360 - 180))


def test_colours_and_relations_are_those_of_the_facts(scenes: list[Scene]) -> None:
    for scene in scenes:
        (large_pixels, large), (small_pixels, small) = things(scene)
        assert named_colour(large_pixels) == scene.group.large.colour
        assert named_colour(small_pixels) == scene.group.small.colour
        down, right = np.array(small.centroid) - np.array(large.centroid)
        relation = "beside" if abs(right) > abs(down) else "above" if down > 0 else "below"
        assert relation == scene.group.relation


def test_shapes_are_what_they_are_called(scenes: list[Scene]) -> None:
    seen = {}
    for scene in scenes:
        region = things(scene)[0][1]
        seen.setdefault(scene.group.large.shape, []).append((region.solidity, region.extent, region.euler_number))
    assert len(seen) == 6
    for shape, measured in seen.items():
        for solidity, extent, euler in measured:
            assert (euler == 0) == (shape == "ring")
            # Share of the convex hull and of the bounding box that is filled, by geometry: a circle fills pi / 4 of its
            # box, a triangle half; a ring leaves out 0.42 squared to 0.64 squared.
            bounds = {
                "circle": (solidity > 0.96, 0.75 < extent < 0.82),
                "square": (solidity > 0.96, extent > 0.96),
                "triangle": (solidity > 0.95, 0.46 < extent < 0.54),
                "star": (solidity < 0.7, extent < 0.5),
                "ring": (0.57 < solidity < 0.84, 0.44 < extent < 0.66),
                "heart": (0.86 < solidity < 0.96, 0.54 < extent < 0.7),
            }[shape]
            assert all(bounds), (shape, solidity, extent)


def test_plain_things_have_one_tone_and_patterned_ones_two(scenes: list[Scene]) -> None:
    for scene in scenes:
        bare = dataclasses.replace(scene, large=dataclasses.replace(scene.large, outline=0.0))
        pixels, region = things(bare)[0]
        inside = erosion(np.pad(region.image, 1), disk(2))[1:-1, 1:-1][region.image]
        # A region's coordinates and its mask are both in row order.
        _, counts = np.unique(np.rint(pixels[inside] * 255), axis=0, return_counts=True)
        share = counts.max() / counts.sum()
        assert share > 0.9 if scene.group.large.pattern == "plain" else share < 0.85, scene


@pytest.mark.parametrize(("name", "low", "high"), [("hue_shift", -9, 9), ("aspect", 0.78, 1.28), ("outline", 0, 0.14)])
def test_fine_detail_shows(scenes: list[Scene], name: str, low: float, high: float) -> None:
    for scene in scenes[:10]:
        ends = [
            draw(
                dataclasses.replace(scene, large=dataclasses.replace(scene.large, **{name: value})), PLAIN_VIEW
            ).astype(int)
            for value in (low, high)
        ]
        assert np.abs(ends[1] - ends[0]).max() > 15


def test_views_of_one_scene_differ_and_are_repeatable(scenes: list[Scene]) -> None:
    views = [draw(scenes[0], random_view(scenes[0], number, seed=SEED)) for number in (0, 1, 0)]
    assert (views[0] != views[1]).mean() > 0.5
    np.testing.assert_array_equal(views[0], views[2])


def test_a_larger_drawing_is_the_same_picture(scenes: list[Scene]) -> None:
    for scene in scenes[:10]:
        view = dataclasses.replace(random_view(scene, 0, seed=SEED), noise=0.0)
        large = Image.fromarray(draw(scene, view, size=256)).resize((64, 64), Image.Resampling.BOX)
        assert np.abs(np.asarray(large, dtype=float) - draw(scene, view)).mean() < 4


def test_jpeg_is_the_picture(scenes: list[Scene]) -> None:
    view = random_view(scenes[0], 0, seed=SEED)
    pixels = draw(scenes[0], view)
    with Image.open(io.BytesIO(jpeg(pixels, view))) as opened:
        assert (opened.format, opened.size) == ("JPEG", (64, 64))
        assert np.abs(np.asarray(opened, dtype=float) - pixels).mean() < 20


def test_the_committed_data_hash_is_that_of_this_machine() -> None:
    """Changes with numpy's legacy stream, Pillow's polygons or our own code: then the committed figures say nothing."""
    made = pictures("test", seed=SEED, size=WorldSize(3, 2, 2))
    assert data_hash(made, seed=SEED) == "4afc3c7f51647fa22e5d1d49f6ebbc45de6f6f7d79a0c06746a89c2547ed6554"
    assert data_hash(made[:-1], seed=SEED) != data_hash(made, seed=SEED)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_split_on_disk_is_read_back_and_kept(tmp_path: Path, jobs: int) -> None:
    size = WorldSize(2, 2, 2)
    made = write_split(tmp_path, "val", seed=SEED, size=size, jobs=jobs)
    read = read_table(tmp_path / TABLE)
    assert len(read) == len(made) == 8
    assert len(read.names) == 4
    assert read.captions == [[caption.text for caption in picture.captions] for picture in made]
    view = random_view(made[3].scene, made[3].view, seed=SEED)
    assert read.paths[3].read_bytes() == jpeg(draw(made[3].scene, view), view)
    (tmp_path / made[0].path).unlink()
    write_split(tmp_path, "val", seed=SEED, size=size)
    assert not (tmp_path / made[0].path).exists()

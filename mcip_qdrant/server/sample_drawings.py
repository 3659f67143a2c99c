"""Drawn pictures for the demo: coloured shapes, which need nothing but Pillow, and what can be filtered by."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

_COLOURS = {
    "red": (208, 52, 44),
    "orange": (236, 140, 38),
    "yellow": (242, 205, 60),
    "green": (62, 148, 75),
    "blue": (47, 100, 200),
    "purple": (128, 74, 170),
}
_CORNERS = {"circle": 0, "triangle": 3, "square": 4, "star": 10}
_PAPERS = ((250, 250, 246), (36, 40, 48))
_SIDE = 320


def write_drawings(folder: Path, columns: Path) -> None:
    """Write `drawings/COLOUR-SHAPE-N.png` below `folder`, two of each, and a CSV of their colour and shape."""
    (folder / "drawings").mkdir(parents=True, exist_ok=True)
    with columns.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(("path", "colour", "shape"))
        for number, (colour, shape) in enumerate(_kinds()):
            for copy, paper in enumerate(_PAPERS):
                path = f"drawings/{colour}-{shape}-{copy + 1}.png"
                table.writerow((path, colour, shape))
                _drawing(colour, shape, paper, seed=2 * number + copy).save(folder / path)


def _kinds() -> Iterator[tuple[str, str]]:
    return ((colour, shape) for colour in _COLOURS for shape in _CORNERS)


def _drawing(colour: str, shape: str, paper: tuple[int, int, int], *, seed: int) -> Image.Image:
    chance = random.Random(seed)  # noqa: S311 - the same drawings each time, no secret
    # Drawn at twice the size and shrunk, because Pillow draws without smoothing.
    canvas = Image.new("RGB", (2 * _SIDE, 2 * _SIDE), paper)
    radius = chance.uniform(0.5, 0.85) * _SIDE
    middle = (_SIDE + chance.uniform(-60, 60), _SIDE + chance.uniform(-60, 60))
    draw = ImageDraw.Draw(canvas)
    corners = _CORNERS[shape]
    if corners == 0:
        draw.ellipse((middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius), _COLOURS[colour])
    else:
        turn = chance.uniform(-0.3, 0.3) - math.pi / 2
        draw.polygon([_corner(middle, radius, turn, corners, index) for index in range(corners)], _COLOURS[colour])
    return canvas.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


def _corner(middle: tuple[float, float], radius: float, turn: float, corners: int, index: int) -> tuple[float, float]:
    reach = radius * 0.45 if corners == _CORNERS["star"] and index % 2 else radius
    angle = turn + 2 * math.pi * index / corners
    return middle[0] + reach * math.cos(angle), middle[1] + reach * math.sin(angle)

"""A scene and a view of it -> pixels. Resolution-independent: the same view can be drawn small or large."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from mcip_qdrant.world.scenes import COLOURS, Detail, Kind, Scene, random_stream

PICTURE_SIZE: Final = 64
_HUES: Final = dict(zip(COLOURS, (0, 27, 54, 120, 222, 280), strict=True))
_OVERSAMPLING: Final = 4
_VIEW: Final = 4
Points = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class View:
    """How a scene is seen in one picture: what changes from view to view and says nothing about the scene.

    Shifts and blob positions are in half picture widths, `turn` is in degrees clockwise, gains multiply linear 0..1 colour,
    `noise` is the amplitude in 0..1, `quality` is JPEG's.
    """

    shift: tuple[float, float]
    scale: float
    turn: float
    gain: tuple[float, float, float]
    corners: tuple[tuple[float, float, float], ...]
    blobs: tuple[tuple[float, float, float, float, float, float], ...]
    noise: float
    noise_seed: int
    quality: int


def random_view(scene: Scene, number: int, *, seed: int) -> View:
    """The `number`-th view of a scene in the world of `seed`."""
    stream = random_stream(seed, _VIEW, scene.number, number)
    between = stream.uniform
    light = between(0.7, 1.1)
    red, green, blue = (light * between(0.9, 1.1) for _ in range(3))
    return View(
        shift=(between(-0.2, 0.2), between(-0.2, 0.2)),
        scale=between(0.78, 1.08),
        turn=between(-14, 14),
        gain=(red, green, blue),
        corners=tuple(_dull(stream, 0.15, 0.95) for _ in range(4)),
        blobs=tuple(
            (between(-1, 1), between(-1, 1), between(0.08, 0.4), *_dull(stream, 0.1, 1.0))
            for _ in range(int(stream.random_sample() * 5))
        ),
        noise=between(0.0, 0.12),
        noise_seed=int(stream.randint(2**31)),
        quality=int(between(55, 92)),
    )


def draw(scene: Scene, view: View, *, size: int = PICTURE_SIZE) -> npt.NDArray[np.uint8]:
    """Draw a view; returns uint8 `[size, size, 3]` RGB, before JPEG."""
    grid = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(grid, grid)
    picture = _background(view, x, y, size)
    place = scene.arrangement
    distance = place.large_radius + place.small_radius + place.gap
    direction = np.array([math.cos(math.radians(place.angle)), math.sin(math.radians(place.angle))])
    # The bounding circles' middle lies in the picture's middle before it is shifted.
    middle = direction * (distance + place.small_radius - place.large_radius) / 2
    frame = _Frame(view, middle)
    _paint(picture, x, y, scene.group.small, scene.small, direction * distance, place.small_radius, frame)
    _paint(picture, x, y, scene.group.large, scene.large, np.zeros(2), place.large_radius, frame)
    _mark(picture, scene, frame)
    picture *= np.array(view.gain)
    picture += _noise(view, size)
    return np.asarray(np.clip(np.rint(picture * 255), 0, 255), dtype=np.uint8)


def jpeg(pixels: npt.NDArray[np.uint8], view: View) -> bytes:
    """The picture as a JPEG file of the view's quality."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=view.quality)
    return buffer.getvalue()


class _Frame:
    """Scene coordinates to picture coordinates (-1..1, y down) and back."""

    def __init__(self, view: View, middle: Points) -> None:
        turn = math.radians(view.turn)
        self._matrix = view.scale * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        self._inverse = np.linalg.inv(self._matrix)
        self._shift = np.array(view.shift)
        self._middle = middle

    def to_picture(self, points: Points) -> Points:
        return np.asarray((points - self._middle) @ self._matrix.T + self._shift)

    def to_scene(self, x: Points, y: Points) -> tuple[Points, Points]:
        dx, dy = x - self._shift[0], y - self._shift[1]
        (a, b), (c, d) = self._inverse
        return a * dx + b * dy + self._middle[0], c * dx + d * dy + self._middle[1]


def _dull(stream: np.random.RandomState, darkest: float, brightest: float) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(stream.random_sample(), stream.uniform(0, 0.3), stream.uniform(darkest, brightest))


def _background(view: View, x: Points, y: Points, size: int) -> Points:
    across, down = ((x + 1) / 2)[..., None], ((y + 1) / 2)[..., None]
    a, b, c, d = (np.array(corner) for corner in view.corners)
    picture = (1 - down) * ((1 - across) * a + across * b) + down * ((1 - across) * c + across * d)
    for centre_x, centre_y, radius, *colour in view.blobs:
        outside = np.hypot(x - centre_x, y - centre_y) - radius
        cover = np.clip(0.5 - outside * size / 4, 0, 1)[..., None]
        picture = picture * (1 - cover) + np.array(colour) * cover
    return np.asarray(picture)


def _noise(view: View, size: int) -> Points:
    # Drawn at one size and enlarged, so that a larger drawing of the view is as noisy to the eye.
    values = np.random.RandomState(view.noise_seed).random_sample((PICTURE_SIZE, PICTURE_SIZE, 3)) - 0.5
    if size != PICTURE_SIZE:
        index = np.arange(size) * PICTURE_SIZE // size
        values = values[index][:, index]
    return np.asarray(values * 2 * view.noise)


def _paint(
    picture: Points, x: Points, y: Points, kind: Kind, detail: Detail, centre: Points, radius: float, frame: _Frame
) -> None:
    """Paint one thing over the picture, in place."""
    stretch = np.array([math.sqrt(detail.aspect), 1 / math.sqrt(detail.aspect)])
    outer, hole = _OUTLINES[kind.shape](detail.shape_parameter)
    cover = _cover(frame.to_picture(centre + outer * stretch * radius), len(x))
    inner = _cover(frame.to_picture(centre + outer * stretch * radius * (1 - detail.outline)), len(x))
    if hole is not None:
        opening = _cover(frame.to_picture(centre + hole * stretch * radius), len(x))
        cover, inner = np.minimum(cover, 1 - opening), np.minimum(inner, 1 - opening)
    # A smaller copy of a shape with a hole or with hollows does not lie inside of it everywhere.
    inner = np.minimum(inner, cover)
    scene_x, scene_y = frame.to_scene(x, y)
    texture = _texture(kind.pattern, detail, (scene_x - centre[0]) / radius, (scene_y - centre[1]) / radius)
    first, second = _tones(kind.colour, detail)
    colours = first * (1 - texture[..., None]) + second * texture[..., None]
    edge = first * 0.35
    cover, inner = cover[..., None], inner[..., None]
    picture[:] = picture * (1 - cover) + (edge * (cover - inner) + colours * inner)


def _mark(picture: Points, scene: Scene, frame: _Frame) -> None:
    place = scene.arrangement
    angle = math.radians(place.mark_angle)
    centre = np.array([math.cos(angle), math.sin(angle)]) * place.mark_distance * place.large_radius
    disc = _circle(0)[0] * place.mark_radius * place.large_radius
    cover = _cover(frame.to_picture(centre + disc), len(picture))[..., None]
    # Half light, half dark whatever its hue, so that it never reads as a third coloured thing.
    value = 1.0 if place.mark_hue < 180 else 0.12
    picture[:] = picture * (1 - cover) + np.array(colorsys.hsv_to_rgb(place.mark_hue / 360, 0.25, value)) * cover


def _tones(colour: str, detail: Detail) -> tuple[Points, Points]:
    """The colour of a thing and of its pattern: one hue, the second tone darker or paler by `contrast`."""
    hue = (_HUES[colour] + detail.hue_shift) / 360 % 1
    first = np.array(colorsys.hsv_to_rgb(hue, detail.saturation, detail.brightness))
    target = np.ones(3) if detail.contrast > 0 else np.zeros(3)
    strength = abs(detail.contrast)
    return first, first * (1 - strength) + target * strength


def _texture(pattern: str, detail: Detail, x: Points, y: Points) -> Points:
    """Share of the second tone, 0..1, at points of a thing whose radius is 1."""
    if pattern == "plain":
        return np.zeros_like(x)
    angle = math.radians(detail.texture_angle)
    along = (x * math.cos(angle) + y * math.sin(angle)) / detail.texture_period + detail.texture_phase
    across = (y * math.cos(angle) - x * math.sin(angle)) / detail.texture_period + detail.texture_phase
    wave, other = np.cos(2 * math.pi * along), np.cos(2 * math.pi * across)
    value = {"striped": wave, "checked": 2 * wave * other, "dotted": wave + other - 0.9}[pattern]
    return np.asarray(np.clip(0.5 + value * 1.5, 0, 1))


def _cover(points: Points, size: int) -> Points:
    """Share of each pixel, 0..1, that lies inside a polygon given in picture coordinates."""
    canvas = Image.new("L", (size * _OVERSAMPLING, size * _OVERSAMPLING))
    pixels = (points + 1) / 2 * size * _OVERSAMPLING
    ImageDraw.Draw(canvas).polygon([(float(px), float(py)) for px, py in pixels], fill=255)
    return np.asarray(canvas.reduce(_OVERSAMPLING), dtype=np.float64) / 255


def _polar(radii: Points, angles: Points) -> Points:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _circle(_: float) -> tuple[Points, None]:
    return _polar(np.ones(48), np.arange(48) * math.tau / 48), None


def _square(_: float) -> tuple[Points, None]:
    return np.array([[-0.88, -0.88], [0.88, -0.88], [0.88, 0.88], [-0.88, 0.88]]), None


def _triangle(parameter: float) -> tuple[Points, None]:
    return np.array([[(parameter - 0.5) * 0.9, -1.0], [1.05, 0.8], [-1.05, 0.8]]), None


def _star(parameter: float) -> tuple[Points, None]:
    radii = np.where(np.arange(10) % 2, 0.38 + 0.2 * parameter, 1.12)
    return _polar(radii, np.arange(10) * math.tau / 10 - math.pi / 2), None


def _ring(parameter: float) -> tuple[Points, Points]:
    circle = _circle(0)[0]
    return circle, circle * (0.42 + 0.22 * parameter)


def _heart(parameter: float) -> tuple[Points, None]:
    t = np.arange(48) * math.tau / 48
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - (4 + 3 * parameter) * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 16, y / 16], axis=1), None


_OUTLINES: Final[dict[str, Callable[[float], tuple[Points, Points | None]]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "heart": _heart,
}

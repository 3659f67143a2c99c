"""RGB picture -> the uint8 pixels that the image graph takes: resize, then crop or pad.

The steps are those of open_clip's evaluation transform up to, not including, the division by 255 and the
normalisation (those are folded into the graph), and the pixels are equal to its pixels bit for bit. Two exceptions,
where the reference cannot be followed: a picture that would be blown up past `BLOW_UP_PIXELS` (there within one level),
and one so thin that the reference rounds a side to zero pixels and fails (there the side is one pixel).

Both sides of that comparison run the same Pillow. Pillow 13 resizes pictures much taller than wide in another order of
passes than Pillow 12 did, which moves their pixels by a level or so: in open_clip as here.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcip_qdrant.manifest import Preprocess

BLOW_UP_PIXELS: Final = 64_000_000
"""A resized picture larger than this is never made: only the part that the crop keeps is."""

_SMALL_PIXELS: Final = 1 << 19
_FILTERS: Final = {
    # (Pillow's filter, its reach in source pixels at scale 1)
    "bicubic": (Image.Resampling.BICUBIC, 2.0),
    "bilinear": (Image.Resampling.BILINEAR, 1.0),
}

_Size = tuple[int, int]


def resized_size(width: int, height: int, config: Preprocess) -> _Size:
    """Size (width, height) in pixels to which a picture of `width` x `height` is resized, before crop or padding."""
    target_height, target_width = config.size
    if config.resize_mode == "squash":
        return target_width, target_height
    if config.resize_mode == "shortest" and target_width == target_height:
        short, long = sorted((width, height))
        long = int(target_width * long / short)
        return (target_width, long) if width <= height else (long, target_width)
    wanted = max if config.resize_mode == "longest" else min
    ratio = wanted(height / target_height, width / target_width)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def preprocess(rgb: Image.Image, config: Preprocess) -> NDArray[np.uint8]:
    """Resize and crop (`shortest`), pad (`longest`) or stretch (`squash`) one picture.

    Args:
        rgb: picture of mode RGB, any size from 1x1; not changed.
        config: the model's own preprocessing.

    Returns:
        uint8 `[height, width, 3]` with `(height, width) == config.size`, values 0..255, C-contiguous, writable.

    Raises:
        ValueError: `rgb` is not of mode RGB.
    """
    if rgb.mode != "RGB":
        raise ValueError(f"preprocess takes RGB pictures, not {rgb.mode}: see mcip_qdrant.decode.to_rgb")
    target_height, target_width = config.size
    target = (target_width, target_height)
    size = resized_size(rgb.width, rgb.height, config)
    name = config.interpolation
    if config.resize_mode == "shortest" and target_width != target_height:
        name = "bicubic"  # open_clip does not pass the interpolation on in this one case, and models were trained so
    if config.resize_mode == "longest":
        picture = _padded(_resized(rgb, size, name), target, config.fill_color)
    elif size == target:
        picture = _resized(rgb, size, name)
    else:
        # Halves round to even, as in the reference.
        left, top = round((size[0] - target_width) / 2), round((size[1] - target_height) / 2)
        crop = (left, top, left + target_width, top + target_height)
        if size[0] * size[1] > BLOW_UP_PIXELS:
            picture = _crop_of_blow_up(rgb, size, crop, name)
        elif rgb.width * rgb.height <= _SMALL_PIXELS and _rows_first(rgb.size, size):
            picture = _crop_of_small(rgb, size, crop, name)
        else:
            picture = _resized(rgb, size, name).crop(crop)
    return np.array(picture, dtype=np.uint8, order="C")


def _resized(rgb: Image.Image, size: _Size, name: str) -> Image.Image:
    return rgb if rgb.size == size else rgb.resize(size, _FILTERS[name][0])


def _padded(picture: Image.Image, target: _Size, fill: int) -> Image.Image:
    if picture.size == target:
        return picture
    canvas = Image.new("RGB", target, (fill, fill, fill))
    canvas.paste(picture, ((target[0] - picture.width) // 2, (target[1] - picture.height) // 2))
    return canvas


def _reach(start: int, stop: int, source: int, resized: int, name: str) -> tuple[int, int]:
    """Source pixels `[first, last)` along one axis that can influence resized pixels `[start, stop)`, generously."""
    scale = source / resized
    support = _FILTERS[name][1] * max(1.0, scale) + 2
    return max(0, math.floor(start * scale - support)), min(source, math.ceil(stop * scale + support))


def _rows_first(source: _Size, resized: _Size) -> bool:
    """Whether Pillow resizes along rows before columns; since version 13 it takes tall pictures the other way round."""
    shrinks_x, shrinks_y = source[0] - resized[0], source[1] - resized[1]
    return shrinks_y <= 0 or shrinks_y <= 2 * shrinks_x


def _crop_of_small(rgb: Image.Image, size: _Size, crop: tuple[int, int, int, int], name: str) -> Image.Image:
    """Same pixels as resize-then-crop where rows go first, with less work.

    Pillow resizes in two passes, along rows and then along columns, with 8-bit pixels in between, and leaves a pass out
    when that side keeps its length. Asking for the passes one by one therefore changes no pixel, and lets us drop in
    between what the crop drops anyway. Each pass runs the same arithmetic on either axis, and Pillow's loop along
    columns is a quarter faster per pixel, which pays for turning the picture as long as it fits in the cache.
    """
    filter_ = _FILTERS[name][0]
    left, top, right, bottom = crop
    first, last = _reach(top, bottom, rgb.height, size[1], name)
    rows = rgb if last - first == rgb.height else rgb.crop((0, first, rgb.width, last))
    turned = rows.transpose(Image.Transpose.TRANSPOSE)
    turned = turned.resize((turned.width, size[0]), filter_).crop((0, left, turned.width, right))
    narrow = turned.transpose(Image.Transpose.TRANSPOSE)
    if narrow.height != rgb.height:
        # The weights of the second pass follow from the full height. The rows left black are out of the crop's reach.
        full = Image.new("RGB", (narrow.width, rgb.height))
        full.paste(narrow, (0, first))
        narrow = full
    return narrow.resize((narrow.width, size[1]), filter_).crop((0, top, narrow.width, bottom))


def _crop_of_blow_up(rgb: Image.Image, size: _Size, crop: tuple[int, int, int, int], name: str) -> Image.Image:
    """Only the crop's own pixels of an enlargement that would not fit in memory.

    Pillow takes the box as 32-bit floats, too coarse far from the origin; so the source is cut down to the box's
    surroundings first, where the coordinates are small.
    """
    left, top, right, bottom = crop
    scale_x, scale_y = rgb.width / size[0], rgb.height / size[1]
    first_x, last_x = _reach(left, right, rgb.width, size[0], name)
    first_y, last_y = _reach(top, bottom, rgb.height, size[1], name)
    near = rgb.crop((first_x, first_y, last_x, last_y))
    box = (
        left * scale_x - first_x,
        top * scale_y - first_y,
        min(right * scale_x - first_x, near.width),
        min(bottom * scale_y - first_y, near.height),
    )
    return near.resize((right - left, bottom - top), _FILTERS[name][0], box=box)

"""The two ways to prepare an image for the encoder. They give different vectors, so every figure names its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, get_args

from mcip_qdrant.manifest import Preprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

Preparation = Literal["open_clip", "squash-1.125"]
PREPARATIONS: Final[tuple[Preparation, ...]] = get_args(Preparation)
_ENLARGED: Final = 1.125


def prepare(rgb: Image.Image, config: Preprocess, preparation: Preparation) -> NDArray[np.uint8]:
    """RGB picture -> uint8 `[H, W, 3]` as the encoder takes it, `(H, W) == config.size`.

    `open_clip`: the model's own transform, as at ingestion. `squash-1.125`: what the paper's authors do in their image
    retrieval and k-NN code (released code, data loaders of the evaluation; the paper's text was not available): both sides
    to int(1.125 * size) whatever the shape, bicubic, then the centre.
    """
    # Here, because the command line takes its choices from this module and must start without NumPy and Pillow.
    import numpy as np

    from mcip_qdrant.preprocess import preprocess

    if preparation == "open_clip":
        return preprocess(rgb, config)
    height, width = config.size
    enlarged = replace(config, size=_enlarged(config), resize_mode="squash", interpolation="bicubic")
    pixels = preprocess(rgb, enlarged)
    top, left = round((enlarged.size[0] - height) / 2), round((enlarged.size[1] - width) / 2)
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def describe(config: Preprocess, preparation: Preparation) -> str:
    """One line for people and for the JSON: what was done to the images."""
    height, width = config.size
    if preparation == "open_clip":
        return f"open_clip (the model's own transform: {config.resize_mode}, {config.interpolation}, {width}x{height})"
    tall, wide = _enlarged(config)
    return f"squash-1.125 (the authors' evaluation code: squash to {wide}x{tall}, bicubic, centre {width}x{height})"


def _enlarged(config: Preprocess) -> tuple[int, int]:
    return int(_ENLARGED * config.size[0]), int(_ENLARGED * config.size[1])

"""Make the golden set: generated pictures and texts, and the vectors that the untouched torch model gives for them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageDraw

from mcip_qdrant.decode import decode
from mcip_qdrant.errors import ExportError
from mcip_qdrant.export.golden_texts import GOLDEN_TEXTS
from mcip_qdrant.export.towers import OpenClipModel
from mcip_qdrant.golden import GoldenSet, pixels_digests
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.preprocess import preprocess
from mcip_qdrant.verify import Progress, encode_in_batches

COUNT = 64
# Small and odd, wide and tall: preprocessing must enlarge, shrink and crop. A square picture cannot show a wrong resize mode.
_SIZES = ((97, 61), (160, 120), (120, 160), (64, 64), (31, 200), (333, 250), (251, 401), (640, 480))
# Tall enough for the order of resize passes, which changed with Pillow 13, to show in the pixels.
_TALL = (400, 1300)
_MODES = ("RGB", "RGB", "RGB", "L", "RGBA", "P", "LA", "RGB")


def make_golden_set(
    model: OpenClipModel,
    tokenize: Callable[[Any], torch.Tensor],
    config: Preprocess,
    *,
    on_item: Progress | None = None,
) -> GoldenSet:
    """Generate pictures and run them and the texts through torch.

    Preprocessing for the reference is open_clip's own transform, applied to the RGB picture that `decode` produces.

    Args:
        model: the open_clip model, not yet folded.
        tokenize: open_clip's own tokenizer, list of texts to int64 `[B, L]`.

    Raises:
        ExportError: preprocessing by `config` is not what open_clip itself does for this model.
    """
    pictures = tuple(picture(index) for index in range(COUNT))
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    decoded = [decode(data).rgb for data in pictures]
    pixels = np.stack([preprocess(rgb, config) for rgb in decoded])
    tensors = torch.stack([transform(rgb) for rgb in decoded]).numpy()
    _check_preprocessing(pixels, tensors, config)
    token_ids = tokenize(list(GOLDEN_TEXTS)).numpy().astype(np.int64)
    # Subnormal floats cost ten times an ordinary operation on CPUs and carry nothing; the sessions flush them too.
    torch.set_flush_denormal(True)
    try:
        image_vectors = encode_in_batches(_reference(model.encode_image), tensors, on_item)
        text_vectors = encode_in_batches(_reference(model.encode_text), token_ids, on_item)
    finally:
        torch.set_flush_denormal(False)
    return GoldenSet(
        pictures=pictures,
        pixels_sha256=pixels_digests(pixels),
        texts=GOLDEN_TEXTS,
        token_ids=token_ids,
        image_vectors=image_vectors,
        text_vectors=text_vectors,
    )


def _check_preprocessing(pixels: NDArray[np.uint8], tensors: NDArray[np.float32], config: Preprocess) -> None:
    """uint8 `[N, H, W, 3]` against open_clip's normalised `[N, 3, H, W]`, to half a level: they are to be equal."""
    mean, std = (np.array(values, dtype=np.float32).reshape(3, 1, 1) for values in (config.mean, config.std))
    for index, (ours, theirs) in enumerate(zip(pixels, tensors, strict=True)):
        levels = (theirs * std + mean) * 255
        if levels.shape[1:] != ours.shape[:2] or np.abs(levels - ours.transpose(2, 0, 1)).max() > 0.5:
            raise ExportError(
                f"preprocessing of golden picture {index} is not what open_clip does for this model: "
                f"a setting of it has no counterpart in {config}"
            )


def _reference(encode: Callable[..., torch.Tensor]) -> Callable[[NDArray[np.generic]], NDArray[np.float32]]:
    def run(rows: NDArray[np.generic]) -> NDArray[np.float32]:
        with torch.inference_mode():
            vectors: NDArray[np.float32] = encode(torch.from_numpy(rows), normalize=True).float().numpy()
        return vectors

    return run


def picture(index: int) -> bytes:
    """One generated picture as PNG: smooth colours, hard edges and grain, in several sizes and pixel formats."""
    rng = np.random.default_rng(1000 + index)
    width, height = _TALL if index == COUNT - 1 else _SIZES[index % len(_SIZES)]
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(x * rng.uniform(1, 25) + y * rng.uniform(1, 25) + rng.uniform(0, 6)) for _ in range(3)]
    base = np.stack(waves, axis=-1) * rng.uniform(30, 90) + rng.uniform(60, 190, size=3)
    grain = rng.normal(0, 6, size=(height, width, 1)) if index % 3 == 0 else 0
    image = Image.fromarray(np.clip(base + grain, 0, 255).astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 6))):
        left, right = sorted(rng.integers(0, width, size=2).tolist())
        top, bottom = sorted(rng.integers(0, height, size=2).tolist())
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((left, top, right, bottom), fill=tuple(rng.integers(0, 256, size=3).tolist()))
    return _as_png(image, _MODES[(index // len(_SIZES)) % len(_MODES)])


def _as_png(image: Image.Image, mode: str) -> bytes:
    if mode in {"RGBA", "LA"}:
        alpha = Image.linear_gradient("L").resize(image.size)
        image = image.convert("RGB" if mode == "RGBA" else "L")
        image.putalpha(alpha)
    elif mode == "P":
        image = image.quantize(64)
    else:
        image = image.convert(mode)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()

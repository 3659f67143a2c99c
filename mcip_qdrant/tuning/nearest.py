"""The captions whose vectors are nearest to those of images, exactly, piece by piece."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

_CAPTIONS_AT_ONCE: Final = 1 << 16


def nearest_captions(
    images: Vectors, captions: Vectors, *, top: int, device: torch.device
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `top` captions of highest cosine of each image, best first; among equals the earlier one first.

    Args:
        images: float32 `[B, D]`, unit norm.
        captions: float32 `[M, D]`, unit norm; read piece by piece.
        top: at most so many.
        device: where the products are computed, in float32.

    Returns:
        int64 `[B, k]` rows of `captions` and float32 `[B, k]` cosines, k = min(top, M).
    """
    rows = torch.from_numpy(np.array(images)).to(device)
    best = torch.empty((len(images), 0), device=device)
    which = torch.empty((len(images), 0), dtype=torch.int64, device=device)
    for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
        piece = torch.from_numpy(np.array(captions[start : start + _CAPTIONS_AT_ONCE])).to(device)
        values, places = (rows @ piece.T).topk(min(top, len(piece)), dim=1)
        best, which = torch.cat([best, values], dim=1), torch.cat([which, places + start], dim=1)
        by_place = which.argsort(dim=1)
        best, which = best.gather(1, by_place), which.gather(1, by_place)
        by_value = best.argsort(dim=1, descending=True, stable=True)[:, :top]
        best, which = best.gather(1, by_value), which.gather(1, by_value)
    return which.cpu().numpy(), best.cpu().numpy()

"""The two towers as the graphs will see them: uint8 pixels or token ids in, projected vectors out (graphs.finish normalises)."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from mcip_qdrant.manifest import Preprocess

OpenClipModel: TypeAlias = Any
"""An open_clip model: a torch module with `visual`, `encode_image` and `encode_text`. open_clip ships no types."""

# A power of two, so that scaling by it is exact in every float format. Folding all of 1/255 into the convolution would push
# fp16 weights into subnormals.
_PIXEL_SCALE = 256.0


class ImageTower(torch.nn.Module):
    """uint8 `[B, H, W, 3]` RGB pixels -> float32 `[B, D]`, any norm.

    Scaling to 0..1, mean and std are folded into the first convolution, in float64, where that convolution has no padding
    (padding means "mean colour" before normalisation and "black" after, so there it stays a step of the graph).
    The model is changed in place: take reference vectors before.
    """

    def __init__(self, model: OpenClipModel, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        mean = torch.tensor(preprocess.mean, dtype=torch.float64)
        std = torch.tensor(preprocess.std, dtype=torch.float64)
        convolution = patch_convolution(model.visual)
        self.folded = convolution is not None
        if convolution is not None:
            _fold(convolution, mean, std)
        self.offset = (mean * 255).float().reshape(1, 3, 1, 1)
        self.factor = (1 / (std * 255)).float().reshape(1, 3, 1, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        planes = pixels.permute(0, 3, 1, 2).to(torch.float32)
        planes = planes * (1 / _PIXEL_SCALE) if self.folded else (planes - self.offset) * self.factor
        projected: torch.Tensor = self.model.encode_image(planes)
        return projected


class TextTower(torch.nn.Module):
    """int64 `[B, L]` token ids -> float32 `[B, D]`, any norm."""

    def __init__(self, model: OpenClipModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.model.encode_text(token_ids)
        return projected


def patch_convolution(visual: torch.nn.Module) -> torch.nn.Conv2d | None:
    """The convolution that takes the image, if normalisation can be folded into it exactly; else None."""
    candidates = (
        getattr(visual, "conv1", None),
        getattr(getattr(getattr(visual, "trunk", None), "patch_embed", None), "proj", None),
    )
    for module in candidates:
        if (
            isinstance(module, torch.nn.Conv2d)
            and module.in_channels == 3
            and module.groups == 1
            and module.padding in ((0, 0), "valid")
        ):
            return module
    return None


def _fold(convolution: torch.nn.Conv2d, mean: torch.Tensor, std: torch.Tensor) -> None:
    weight = convolution.weight.detach().double()
    scaled = weight / std.reshape(1, 3, 1, 1)
    shift = -(scaled * mean.reshape(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    if convolution.bias is not None:
        shift = shift + convolution.bias.detach().double()
    convolution.weight = torch.nn.Parameter((scaled * (_PIXEL_SCALE / 255)).float(), requires_grad=False)
    convolution.bias = torch.nn.Parameter(shift.float(), requires_grad=False)

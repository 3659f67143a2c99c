"""What is trained by each method: which tensors move, and the loss of one batch. One module, so that DDP can wrap it whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from mcip_qdrant.errors import TuningError
from mcip_qdrant.export.towers import OpenClipModel
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.tuning.hyper import HyperParameters
from mcip_qdrant.tuning.losses import ArcMargin, InfoNCE, mc_arc_margin

PROXIES: Final = "arc_margin.proxies"
# Text-side parts of open_clip's flat CLIP, which has no text module, and of its text towers, in the order of the data flow.
_TEXT_FLOW: Final = ("token_embedding", "cls_emb", "positional_embedding", "transformer", "ln_final", "text_projection")


class Trainee(torch.nn.Module):
    """A model with everything frozen, in eval mode. Subclasses wake parts and define the loss.

    Args:
        model: open_clip model, float32.
        preprocess: the model's own; pixels come as uint8 and are normalised here.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, model: OpenClipModel, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        shape = (1, 3, 1, 1)
        self.register_buffer("_mean", torch.tensor(preprocess.mean).reshape(shape), persistent=False)
        self.register_buffer("_std", torch.tensor(preprocess.std).reshape(shape), persistent=False)
        self._awake: list[torch.nn.Module] = []

    def wake(self, module: torch.nn.Module, *, checkpointing: bool) -> None:
        """Train every parameter of a part of the model, with its dropouts and running statistics."""
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        self._awake.append(module)
        if checkpointing:
            switch_checkpointing(module)

    def train(self, mode: bool = True) -> Trainee:
        """Frozen parts stay in eval mode, so that not even a running mean of theirs moves."""
        super().train(False)
        self.training = mode
        for module in self._awake:
            module.train(mode)
        return self

    def images(self, pixels: Tensor) -> Tensor:
        """uint8 `[B, H, W, 3]` -> float `[B, D]`, unit norm."""
        planes = (pixels.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        vectors: Tensor = self.model.encode_image(planes, normalize=True)
        return vectors

    def texts(self, token_ids: Tensor) -> Tensor:
        """int64 `[B, L]` -> float `[B, D]`, unit norm."""
        vectors: Tensor = self.model.encode_text(token_ids, normalize=True)
        return vectors

    def moving(self) -> Iterator[tuple[str, Tensor]]:
        """What training changes, by name: awake parameters and the buffers of awake modules."""
        yield from ((name, value) for name, value in self.named_parameters() if value.requires_grad)
        awake = {id(buffer) for module in self._awake for buffer in module.buffers()}
        yield from ((name, value) for name, value in self.named_buffers() if id(value) in awake)

    def after_step(self) -> None:
        """Called when the optimizer has moved the parameters."""


class ClassTrainee(Trainee):
    """GPR-FT: ArcMargin on the image tower, its projector included; the text tower sleeps."""

    def __init__(
        self, model: OpenClipModel, preprocess: Preprocess, hyper: HyperParameters, *, classes: int, dimensions: int
    ) -> None:
        super().__init__(model, preprocess)
        self.wake(model.visual, checkpointing=hyper.grad_checkpointing)
        self.arc_margin = ArcMargin(classes, dimensions, scale=hyper.scale, margin=hyper.margin)

    def forward(self, *, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss of uint8 `[B, H, W, 3]` pixels with int64 `[B]` classes."""
        return {"loss": self.arc_margin(self.images(pixels), labels)}


class McipTrainee(ClassTrainee):
    """MCIP: ArcMargin and MCArcMargin on the same image embedding; captions come as vectors of the frozen text tower."""

    def __init__(
        self, model: OpenClipModel, preprocess: Preprocess, hyper: HyperParameters, *, classes: int, dimensions: int
    ) -> None:
        super().__init__(model, preprocess, hyper, classes=classes, dimensions=dimensions)
        self._hyper = hyper

    def forward(  # type: ignore[override]
        self, *, pixels: Tensor, labels: Tensor, captions: Tensor, positives: Tensor
    ) -> dict[str, Tensor]:
        """As `ClassTrainee`, with float `[M, D]` vectors of the batch's captions and bool `[B, M]` whose they are."""
        hyper = self._hyper
        vectors = self.images(pixels)
        arc = self.arc_margin(vectors, labels)
        mc_arc = mc_arc_margin(
            vectors, captions, positives, scale=hyper.scale, margin=hyper.margin, odd_term=hyper.odd_term
        )
        return {
            "loss": hyper.arc_weight * arc + hyper.caption_weight * mc_arc,
            "arc_margin": arc.detach(),
            "mc_arc_margin": mc_arc.detach(),
        }


class PairTrainee(Trainee):
    """Both towers on image-text pairs by InfoNCE, and the logit scale."""

    def __init__(
        self,
        model: OpenClipModel,
        preprocess: Preprocess,
        hyper: HyperParameters,
        *,
        rank: int,
        world_size: int,
        frozen_images: bool,
    ) -> None:
        super().__init__(model, preprocess)
        self.info_nce = InfoNCE(rank=rank, world_size=world_size)
        self._ceiling = math.log(hyper.max_logit_scale)
        if not frozen_images:
            self.wake(model.visual, checkpointing=hyper.grad_checkpointing)
        for module in _text_modules(model):
            self.wake(module, checkpointing=hyper.grad_checkpointing)
        tensors = text_tensors(model)
        asleep = len(tensors) - hyper.text_tensors if hyper.text_tensors else 0
        if asleep < 0:
            raise TuningError(f"text_tensors is {hyper.text_tensors}, but the text tower has {len(tensors)}")
        for number, (_, tensor) in enumerate(tensors):
            tensor.requires_grad_(number >= asleep)
        model.logit_scale.requires_grad_(True)
        self.after_step()

    def forward(
        self, *, token_ids: Tensor, pixels: Tensor | None = None, image_vectors: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Loss of int64 `[B, L]` texts with their pictures, uint8 `[B, H, W, 3]` or as unit vectors float `[B, D]`."""
        images = image_vectors if pixels is None else self.images(pixels)
        if images is None:
            raise TypeError("give pixels or image_vectors")
        scale = self.model.logit_scale.exp()
        return {"loss": self.info_nce(images, self.texts(token_ids), scale), "logit_scale": scale.detach()}

    def after_step(self) -> None:
        """exp(logit_scale) stays in 1..max_logit_scale, as in CLIP's own training."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, self._ceiling)


def switch_checkpointing(module: Any) -> None:
    """Turn gradient checkpointing on in a tower of open_clip's, where it can."""
    if hasattr(module, "set_grad_checkpointing"):
        module.set_grad_checkpointing(True)
    elif hasattr(module, "grad_checkpointing"):
        module.grad_checkpointing = True


def _text_modules(model: OpenClipModel) -> list[torch.nn.Module]:
    if hasattr(model, "text"):
        return [model.text]
    modules: list[Any] = [getattr(model, name, None) for name in _TEXT_FLOW]
    return [module for module in modules if isinstance(module, torch.nn.Module)]


def text_tensors(model: OpenClipModel) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameter tensors of the text tower in the order of the data flow, by name.

    torch lists a module's own parameters before those of its parts, which would put the projection first in some towers.
    """
    prefix = "text." if hasattr(model, "text") else ""

    def place(name: str) -> int:
        head = name.removeprefix(prefix).split(".")[0]
        # Towers of other libraries keep their own order.
        return _TEXT_FLOW.index(head) if head in _TEXT_FLOW else 0

    own = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if (name.startswith(prefix) if prefix else name.split(".")[0] in _TEXT_FLOW)
    ]
    return sorted(own, key=lambda item: place(item[0]))

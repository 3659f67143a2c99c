"""The losses of the paper: ArcMargin over class proxies, MCArcMargin over the captions of a batch, InfoNCE over pairs.

Sources: the paper on MCIP (arXiv 2409.01936) and the code released with it. ArcMargin is ArcFace
(arXiv 1801.07698). The symbols of MCArcMargin were **reconstructed** from the released code, because the typesetting of the
paper was not at hand. All of them compute in float32 at least, whatever autocast does around them: softmax over logits of
scale 30 needs the bits.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.nn import functional

# sin θ = sqrt(1 - cos²) has an infinite slope where a vector meets its target; below this the slope is cut to zero.
_SMALLEST_SQUARED_SINE: Final = 1e-12


def add_margin(cosine: Tensor, margin: float) -> Tensor:
    """Make a target harder: cos θ -> cos(θ + m), and beyond θ = π - m the straight line cos θ - m sin(π - m).

    The line keeps the value falling as θ grows ("easy margin" off in ArcFace's words).

    Args:
        cosine: cosines in -1..1, any shape.
        margin: m in radians, 0..π.
    """
    sine = torch.sqrt((1 - cosine.square()).clamp_min(_SMALLEST_SQUARED_SINE))
    inside = cosine * math.cos(margin) - sine * math.sin(margin)
    beyond = cosine - margin * math.sin(math.pi - margin)
    return torch.where(cosine > math.cos(math.pi - margin), inside, beyond)


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosines `[B, M]` of `[B, D]` and `[M, D]`, computed outside autocast."""
    with torch.autocast(rows.device.type, enabled=False):
        left = functional.normalize(_full_precision(rows), dim=-1)
        right = functional.normalize(_full_precision(columns), dim=-1)
        return (left @ right.T).clamp(-1, 1)


class ArcMargin(torch.nn.Module):
    """ArcFace over one learned proxy vector per class.

    L = -1/B Σ_i log [ e^{s cos(θ_{i,y}+m)} / ( e^{s cos(θ_{i,y}+m)} + Σ_{k≠y} e^{s cos θ_{ik}} ) ]

    Own code although pytorch-metric-learning has the loss (a golden test compares the two): that one gives infinite
    gradients where an embedding coincides with its proxy, turns the proxies themselves to half precision under autocast,
    and offers no margin for several targets, which MCArcMargin needs.

    Args:
        classes: number of classes C.
        dimensions: length D of the embeddings.
        scale: s, the inverse temperature; the paper's code uses 30.
        margin: m in radians; the paper's code uses 0.1.
    """

    def __init__(self, classes: int, dimensions: int, *, scale: float = 30.0, margin: float = 0.1) -> None:
        super().__init__()
        self.scale = scale
        self.margin = margin
        self.proxies = torch.nn.Parameter(torch.empty(classes, dimensions))
        torch.nn.init.xavier_uniform_(self.proxies)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the batch.

        Args:
            images: float `[B, D]`, any norm.
            labels: int64 `[B]`, 0..C-1.
        """
        cosine = _cosines(images, self.proxies)
        target = add_margin(cosine.gather(1, labels[:, None]), self.margin)
        return functional.cross_entropy(self.scale * cosine.scatter(1, labels[:, None], target), labels)


def mc_arc_margin(
    images: Tensor,
    captions: Tensor,
    positives: Tensor,
    *,
    scale: float = 30.0,
    margin: float = 0.1,
    odd_term: float = 0.0,
) -> Tensor:
    """ArcMargin with captions for classes, several of which may be right (reconstructed from the released code).

    With P(i) the captions of image i, n_i their number, and all captions of the batch as the classes:

    z_ij = s cos(θ_ij + m) if j ∈ P(i), else s cos θ_ij;   p_ij = softmax_j z_ij
    L = -1/B Σ_i (1/n_i) Σ_{j∈P(i)} log p_ij

    An image without captions adds nothing to the sum but counts in B. A caption that belongs to two images is one column,
    positive for both.

    Args:
        images: float `[B, D]`, any norm.
        captions: float `[M, D]`, any norm; M may be 0.
        positives: bool `[B, M]`.
        scale: s, the inverse temperature.
        margin: m in radians.
        odd_term: weight of a term that the released code adds (0.1 there) and that nothing in the paper was found to
            confirm: Σ_i max_j[-(1 - τ_ij) log p_ij] / B with τ = 1/n_i on positives and 0 elsewhere. It lifts the least
            likely caption, right or wrong; off unless asked for.
    """
    if captions.shape[0] == 0:
        return _full_precision(images).sum() * 0
    cosine = _cosines(images, captions)
    logits = scale * torch.where(positives, add_margin(cosine, margin), cosine)
    log_p = functional.log_softmax(logits, dim=1)
    share = positives.to(log_p.dtype) / positives.sum(dim=1, keepdim=True).clamp_min(1)
    loss = -(share * log_p).sum() / len(images)
    if odd_term:
        loss = loss + odd_term * (-(1 - share) * log_p).amax(dim=1).mean()
    return loss


class InfoNCE(torch.nn.Module):
    """Symmetric cross entropy over image-text pairs: open_clip's own loss, across all processes and outside autocast.

    L = -1/(2B) Σ_i [ log( e^{σ x_i·t_i} / Σ_j e^{σ x_i·t_j} ) + log( e^{σ x_i·t_i} / Σ_j e^{σ x_j·t_i} ) ]

    Each process compares its own rows with everybody's columns; the mean over processes is the loss of the whole batch, and
    so are the gradients that DistributedDataParallel averages.
    """

    def __init__(self, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__()
        self._loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)

    def forward(self, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        """Mean loss of this process' rows.

        Args:
            images: float `[B, D]`, unit norm.
            texts: float `[B, D]`, unit norm; row i belongs to image i.
            scale: σ, a scalar.
        """
        with torch.autocast(images.device.type, enabled=False):
            loss: Tensor = self._loss(_full_precision(images), _full_precision(texts), _full_precision(scale))
            return loss

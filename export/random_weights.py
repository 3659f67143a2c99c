"""A checkpoint with seeded random weights: for demonstrations where no trained one is at hand."""

from __future__ import annotations

import logging
from pathlib import Path


def random_checkpoint(model: str, path: Path, *, seed: int = 0) -> None:
    """Save an open_clip architecture with random weights, in the form in which real checkpoints come.

    Pictures find their copies with such a model; words mean nothing to it.
    """
    import open_clip
    import torch

    logging.getLogger().setLevel(logging.ERROR)
    torch.manual_seed(seed)
    torch.save(open_clip.create_model(model, pretrained=None).state_dict(), path)

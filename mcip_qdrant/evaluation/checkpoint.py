"""A checkpoint as a model to evaluate, by torch and open_clip. Imported by the command line alone."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mcip_qdrant.errors import DeviceError, ExportError
from mcip_qdrant.export.architecture import resolve_architecture
from mcip_qdrant.export.checkpoint import load_model
from mcip_qdrant.export.reference_tokenizer import load_reference_tokenizer
from mcip_qdrant.export.space_id import space_id
from mcip_qdrant.export.tokenizer import export_tokenizer
from mcip_qdrant.export.towers import OpenClipModel
from mcip_qdrant.session import Device


class CheckpointModel:
    """An open_clip checkpoint in float32, with the `space_id` that its export would have."""

    def __init__(
        self,
        model: str,
        checkpoint: Path,
        *,
        device: Device,
        tokenizer: Path | None = None,
        quick_gelu: bool | None = None,
        base: str | None = None,
    ) -> None:
        """Load it. Arguments are those of `mcip-qdrant export`.

        Raises:
            ExportError: unknown architecture, unreadable checkpoint, tokenizer files that are missing.
            DeviceError: CUDA was asked for and torch has none.
        """
        architecture = resolve_architecture(model, quick_gelu=quick_gelu, base=base)
        self._device = _torch_device(device)
        self._tokenize = load_reference_tokenizer(architecture.name, architecture.text_config, tokenizer)
        loaded: OpenClipModel = load_model(architecture, checkpoint=checkpoint, pretrained=None)
        self.label = checkpoint.name
        self.preprocess = architecture.image_preprocess(loaded.visual.image_size)
        vocabulary = getattr(loaded, "vocab_size", None) or getattr(getattr(loaded, "text", None), "vocab_size", None)
        if vocabulary is None:
            raise ExportError(
                f"{model}: this text tower does not tell its vocabulary size, so its space has no space_id"
            )
        with tempfile.TemporaryDirectory() as folder:
            described = export_tokenizer(self._tokenize, Path(folder), vocab_size=int(vocabulary))
        self.space_id = space_id(loaded.state_dict(), architecture.fingerprint(), self.preprocess, described)
        self.variant = f"torch-fp32-{self._device.type}"
        self._model: OpenClipModel = loaded.to(self._device)
        self._mean = torch.tensor(self.preprocess.mean, device=self._device).reshape(1, 3, 1, 1)
        self._std = torch.tensor(self.preprocess.std, device=self._device).reshape(1, 3, 1, 1)
        self.embedding_dim = int(self.encode_texts(["a"]).shape[1])

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Uint8 `[B, H, W, 3]` -> float32 `[B, D]`, L2 norm 1."""
        planes = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            vectors = self._model.encode_image((planes - self._mean) / self._std, normalize=True)
        return _as_array(vectors)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> float32 `[B, D]`, L2 norm 1; texts beyond the context length are cut."""
        with torch.inference_mode():
            vectors = self._model.encode_text(self._tokenize(list(texts)).to(self._device), normalize=True)
        return _as_array(vectors)


def _as_array(vectors: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = vectors.float().cpu().numpy()
    return array


def _torch_device(device: Device) -> torch.device:
    if device.kind == "cpu" or (device.kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(f"device {device} was asked for, but torch finds no CUDA device here")
    return torch.device("cuda", device.index)

"""What an evaluation asks of a model, and the model of a bundle (ONNX, no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.bundle import Bundle
from mcip_qdrant.encoder import EncoderSettings, ImageEncoder, TextEncoder
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.session import CPU_PROVIDER, choose_provider, default_precision


class Model(Protocol):
    """Anything that embeds pictures and texts into one space.

    `label` is a name for people; `space_id` and `variant` (runtime, precision and device) together name the numbers: vectors
    of one space in two variants are close, not equal.
    """

    @property
    def label(self) -> str:
        """A name for people."""
        ...

    @property
    def space_id(self) -> str:
        """Whose vectors these are comparable to: that of the bundle, or that an export would have."""
        ...

    @property
    def variant(self) -> str:
        """Runtime, precision and device, as in `onnx-fp32-cpu`."""
        ...

    @property
    def embedding_dim(self) -> int:
        """D, the length of a vector."""
        ...

    @property
    def preprocess(self) -> Preprocess:
        """How pictures are made ready: size, resizing, mean and deviation."""
        ...

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Uint8 `[B, H, W, 3]` -> float32 `[B, D]`, L2 norm 1."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> float32 `[B, D]`, L2 norm 1."""
        ...


class BundleModel:
    """A bundle. Each tower is loaded at its first use."""

    def __init__(self, bundle: Bundle, settings: EncoderSettings | None = None) -> None:
        """Choose device and precision.

        Raises:
            DeviceError: the device asked for is not there.
            MissingExtraError: no ONNX Runtime.
        """
        self.bundle = bundle
        self._settings = settings or EncoderSettings()
        self.label = bundle.directory.resolve().name
        self.space_id = bundle.space_id
        self.embedding_dim = bundle.embedding_dim
        self.preprocess = bundle.manifest.preprocess
        self.provider = choose_provider(self._settings.device)
        precision = self._settings.precision or default_precision(self.provider)
        self.variant = f"onnx-{precision}-{'cpu' if self.provider == CPU_PROVIDER else 'cuda'}"

    @cached_property
    def _images(self) -> ImageEncoder:
        return ImageEncoder(self.bundle, self._settings)

    @cached_property
    def _texts(self) -> TextEncoder:
        return TextEncoder(self.bundle, self._settings)

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Uint8 `[B, H, W, 3]` -> float32 `[B, D]`, L2 norm 1."""
        return self._images.encode(pixels)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> float32 `[B, D]`, L2 norm 1; texts beyond the context length are cut."""
        return self._texts.encode(texts)

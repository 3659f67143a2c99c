"""The two encoders of a bundle: pixels or text in, unit vectors of one shared space out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.bundle import Bundle
from mcip_qdrant.cpus import available_cpus
from mcip_qdrant.manifest import Precision, Tower
from mcip_qdrant.session import AUTO, CPU_PROVIDER, Device, Session, choose_provider, default_precision


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """Where and how graphs run.

    `precision` None means fp16 on CUDA and fp32 on the CPU. `threads` None means the processors this process may use.
    """

    device: Device = AUTO
    precision: Precision | None = None
    threads: int | None = None


def open_session(bundle: Bundle, tower: Tower, settings: EncoderSettings) -> Session:
    """Load one tower's graph in the precision that fits the device.

    Raises:
        BundleError: no such graph, it cannot be loaded, or it is not the graph that the manifest describes.
        DeviceError: the device asked for is not active.
        MissingExtraError: no ONNX Runtime is installed.
    """
    precision = settings.precision or default_precision(choose_provider(settings.device))
    graph = bundle.graph(tower, precision)
    session = Session(
        bundle.directory / graph.file,
        device=settings.device,
        precision=precision,
        threads=settings.threads,
    )
    manifest = bundle.manifest
    row = (*manifest.preprocess.size, 3) if tower == "visual" else (manifest.tokenizer.context_length,)
    session.require_shapes(row, manifest.embedding_dim)
    return session


class ImageEncoder:
    """Preprocessed pixels -> vectors. One graph, safe to share between threads."""

    def __init__(self, bundle: Bundle, settings: EncoderSettings | None = None) -> None:
        self.bundle = bundle
        settings = settings or EncoderSettings()
        self._session = open_session(bundle, "visual", settings)
        self.provider = self._session.provider
        on_cpu = self.provider == CPU_PROVIDER
        self.batches_at_once = max(1, available_cpus() // (settings.threads or available_cpus())) if on_cpu else 1
        """How many batches can be encoded side by side without the threads of one taking the cores of another."""

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode uint8 `[B, H, W, 3]` RGB pixels, as `preprocess` returns them, to float32 `[B, D]`, L2 norm 1."""
        height, width = self.bundle.manifest.preprocess.size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (height, width, 3):
            raise ValueError(f"pixels must be uint8 [B, {height}, {width}, 3], not {pixels.dtype} {list(pixels.shape)}")
        return self._session.run(pixels)


class TextEncoder:
    """Texts -> vectors. One graph, safe to share between threads."""

    def __init__(self, bundle: Bundle, settings: EncoderSettings | None = None) -> None:
        self.bundle = bundle
        self.tokenizer = bundle.tokenizer()
        self._session = open_session(bundle, "textual", settings or EncoderSettings())
        self.provider = self._session.provider

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts to float32 `[B, D]`, L2 norm 1; texts beyond the context length are cut."""
        return self.encode_ids(self.tokenizer.encode(texts).ids)

    def encode_ids(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Encode int64 `[B, L]` token ids to float32 `[B, D]`, L2 norm 1."""
        return self._session.run(token_ids)

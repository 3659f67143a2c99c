"""What the pipeline asks of the stages at its end: an encoder and a sink. Any object with these methods will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """Anything that turns uint8 `[B, H, W, 3]` into float32 `[B, D]`, L2 norm 1."""

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode one batch."""
        ...


class Sink(Protocol):
    """Where points go. Methods as in `QdrantSink`."""

    def known(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Payloads of those points that exist."""
        ...

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32], payloads: Sequence[dict[str, Any]]) -> None:
        """Insert or overwrite points."""
        ...

    def update_payloads(self, changes: Mapping[str, dict[str, Any]]) -> None:
        """Set payload fields on existing points."""
        ...

"""Does this bundle give torch's vectors on this machine? Hashes, then preprocessing, token ids and golden vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.bundle import Bundle
from mcip_qdrant.encoder import EncoderSettings, ImageEncoder, TextEncoder
from mcip_qdrant.errors import BundleError
from mcip_qdrant.golden import Agreement, GoldenSet, compare, pixels_digests
from mcip_qdrant.manifest import Precision, Tower
from mcip_qdrant.session import Device, choose_provider, default_precision

BOUNDS: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.95}
"""Lowest cosine to torch that each golden item may have."""

Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class GraphCheck:
    """One graph's agreement with torch on the provider that really ran it."""

    tower: Tower
    precision: Precision
    provider: str
    agreement: Agreement
    bound: float

    @property
    def passed(self) -> bool:
        """Every golden item reached the bound."""
        return self.agreement.minimum >= self.bound


def verify(
    bundle: Bundle,
    *,
    device: Device,
    precision: Precision | None = None,
    towers: Iterable[Tower] = ("visual", "textual"),
    on_item: Progress | None = None,
) -> list[GraphCheck]:
    """Run the golden set through the graphs that `device` would use.

    Args:
        precision: check this precision instead of the device's own.
        on_item: called with the number of items just encoded.

    Raises:
        BundleError: preprocessing or token ids differ from those at export (naming the first item), or a graph cannot run.
        DeviceError: the device asked for is not active.
    """
    golden = bundle.golden()
    chosen = precision or default_precision(choose_provider(device))
    settings = EncoderSettings(device=device, precision=chosen)
    checks = []
    for tower in towers:
        graph = bundle.graph(tower, chosen)
        vectors, provider = _encode_golden(bundle, golden, tower, settings, on_item)
        reference = golden.image_vectors if tower == "visual" else golden.text_vectors
        agreement = compare(vectors, reference)
        checks.append(GraphCheck(tower, chosen, provider, agreement, graph.parity.bound))
    return checks


def check_preprocessing(bundle: Bundle) -> None:
    """Preprocess the golden pictures and compare the pixels with those at export. Takes a fraction of a second, runs no graph.

    Raises:
        BundleError: this machine's Pillow gives other pixels.
    """
    golden = bundle.golden()
    _same(
        "preprocessed pixels of picture",
        pixels_digests(golden.pixels(bundle.manifest.preprocess)),
        golden.pixels_sha256,
    )


def require(checks: Iterable[GraphCheck]) -> None:
    """Raise where a check failed.

    Raises:
        BundleError: with the figures of the first graph that missed its bound.
    """
    for check in checks:
        if not check.passed:
            raise BundleError(
                f"{check.tower} {check.precision} on {check.provider} does not give the model's vectors: lowest cosine "
                f"{check.agreement.minimum:.6f} (golden item {check.agreement.worst_item}), at least {check.bound} is required"
            )


def _encode_golden(
    bundle: Bundle,
    golden: GoldenSet,
    tower: Tower,
    settings: EncoderSettings,
    on_item: Progress | None,
) -> tuple[NDArray[np.float32], str]:
    if tower == "visual":
        images = ImageEncoder(bundle, settings)
        pixels = golden.pixels(bundle.manifest.preprocess)
        _same("preprocessed pixels of picture", pixels_digests(pixels), golden.pixels_sha256)
        return encode_in_batches(images.encode, pixels, on_item), images.provider
    texts = TextEncoder(bundle, settings)
    ids = texts.tokenizer.encode(golden.texts).ids
    _same("token ids of text", [row.tobytes() for row in ids], [row.tobytes() for row in golden.token_ids])
    return encode_in_batches(texts.encode_ids, ids, on_item), texts.provider


def encode_in_batches(
    encode: Callable[[NDArray[Any]], NDArray[np.float32]],
    rows: NDArray[Any],
    on_item: Progress | None = None,
) -> NDArray[np.float32]:
    """Encode `[N, …]` in batches of 1, 2, 7, then 8: a batch axis that was baked into a graph shows at once."""
    parts = []
    for start, stop in _batches(len(rows)):
        parts.append(encode(rows[start:stop]))
        if on_item is not None:
            on_item(stop - start)
    return np.concatenate(parts)


def _batches(total: int) -> Iterator[tuple[int, int]]:
    start = 0
    for size in (1, 2, 7, *[8] * total):
        if start >= total:
            return
        yield start, min(start + size, total)
        start += size


def _same(what: str, found: Iterable[object], expected: Iterable[object]) -> None:
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours != theirs:
            raise BundleError(
                f"{what} {index} differ from those at export: another Pillow or tokenizers version behaves differently here, "
                "or the bundle was altered"
            )
